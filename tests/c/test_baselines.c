/* What is ordinary for a model: the quantiles' error, the tables' bounds, many threads.
 */
#include "check.h"

#include <math.h>
#include <pthread.h>

#include "text/baselines.h"

static void
quantiles_are_within_their_error(void)
{
    struct ag_quantiles q = {0};
    uint64_t seed = check_seed(4);
    for (int i = 1; i <= 1000; i++) {
        ag_quantiles_add(&q, i);
    }
    ag_quantiles_add(&q, NAN);
    ag_quantiles_add(&q, -1.0);
    ASSERT_EQ(q.count, 1000);
    for (int percent = 0; percent <= 100; percent++) {
        double exact = 1.0 + floor(percent / 100.0 * 999);
        double found = ag_quantiles_at(&q, percent / 100.0);
        ASSERT(fabs(found - exact) <= AG_QUANTILE_ERROR * exact * 1.0001);
    }
    q = (struct ag_quantiles){0};
    ASSERT(isnan(ag_quantiles_at(&q, 0.5)));
    for (int i = 0; i < 3 * AG_QUANTILE_FULL; i++) {
        ag_quantiles_add(&q, (double)(check_random(&seed) % 1000) * 1e6);
        ASSERT(q.count < AG_QUANTILE_FULL);
    }
    ASSERT(isfinite(ag_quantiles_at(&q, 1.0)));
    for (int i = 0; i < 3 * AG_QUANTILE_FULL; i++) { /* the old ones fade */
        ag_quantiles_add(&q, 0.0);
    }
    ASSERT(ag_quantiles_at(&q, 0.7) == 0.0);
}

static void
old_models_and_sessions_make_room(void)
{
    struct ag_baselines *b = ag_baselines_new();
    ASSERT_NOT_NULL(b);
    double values[AG_BASELINE_COUNT] = {1.0, 1.0, 1.0, 0.1, 1.0, 10.0};
    double thresholds[AG_BASELINE_COUNT];
    struct ag_session where = {.entropy = {.n = 5}}, found;
    for (uint64_t key = 0; key < 10 * AG_BASELINE_SESSIONS; key++) {
        ag_baselines_judge(b, key, values, thresholds);
        where.entropy.mean = (double)key;
        ag_baselines_put_session(b, key, &where);
        ag_baselines_get_session(b, key, &found);
        ASSERT(found.entropy.n == 5 && found.entropy.mean == (double)key);
    }
    ag_baselines_get_session(b, 0, &found);
    ASSERT_EQ(found.entropy.n, 0);
    ASSERT(isnan(ag_baselines_quantile(b, 0, AG_BASELINE_ENTROPY, 0.5)));
    ag_baselines_free(b);
    ag_baselines_free(NULL);
}

static void
thresholds_stay_between_their_bounds(void)
{
    struct ag_baselines *b = ag_baselines_new();
    ASSERT_NOT_NULL(b);
    double values[AG_BASELINE_COUNT], thresholds[AG_BASELINE_COUNT];
    static const double extremes[] = {0.0, 1e300};
    for (size_t e = 0; e < 2; e++) {
        for (int i = 0; i <= AG_BASELINE_READY; i++) {
            for (int s = 0; s < AG_BASELINE_COUNT; s++) {
                values[s] = extremes[e];
            }
            ag_baselines_judge(b, e, values, thresholds);
            if (i < AG_BASELINE_READY) {
                ASSERT(thresholds[AG_BASELINE_LOOP] == 96.0);
            }
        }
        ASSERT(thresholds[AG_BASELINE_LOOP] == (e == 0 ? 80.0 : 1024.0));
        ASSERT(thresholds[AG_BASELINE_COLLAPSE] == (e == 0 ? 0.02 : 0.5));
        ASSERT(thresholds[AG_BASELINE_ENTROPY] == (e == 0 ? 3.0 : 16.0));
    }
    ag_baselines_free(b);
}

static void *
hammer(void *shared)
{
    struct ag_baselines *b = shared;
    double values[AG_BASELINE_COUNT] = {1.0, 1.0, 1.0, 0.1, 1.0, 10.0};
    double thresholds[AG_BASELINE_COUNT];
    struct ag_session where = {.entropy = {.n = 1, .mean = 1.0}};
    for (uint64_t i = 0; i < 3000; i++) {
        ag_baselines_judge(b, i % 80, values, thresholds);
        ag_baselines_put_session(b, i % 40, &where);
        ag_baselines_get_session(b, i % 50, &where);
        ASSERT(where.entropy.n <= 1);
        where = (struct ag_session){.entropy = {.n = 1, .mean = 1.0}};
        (void)ag_baselines_quantile(b, i % 90, AG_BASELINE_DRIFT, 0.5);
    }
    return NULL;
}

static void
threads_share_them(void)
{
    struct ag_baselines *b = ag_baselines_new();
    pthread_t threads[4];
    ASSERT_NOT_NULL(b);
    for (int i = 0; i < 4; i++) {
        ASSERT_EQ(pthread_create(&threads[i], NULL, hammer, b), 0);
    }
    for (int i = 0; i < 4; i++) {
        ASSERT_EQ(pthread_join(threads[i], NULL), 0);
    }
    ag_baselines_free(b);
}

int
main(void)
{
    RUN(quantiles_are_within_their_error);
    RUN(old_models_and_sessions_make_room);
    RUN(thresholds_stay_between_their_bounds);
    RUN(threads_share_them);
    return 0;
}
