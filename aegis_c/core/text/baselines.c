#include "text/baselines.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/alloc.h"

#define WAYS 8 /* sessions that share a place; the oldest of them makes room */

struct model {
    uint64_t key, used;
    struct ag_quantiles of[AG_BASELINE_COUNT];
};

struct session {
    uint64_t key, used;
    struct ag_session where;
};

struct ag_baselines {
    pthread_mutex_t lock;
    uint64_t clock; /* under lock, as all that follows; 0 marks what was never used */
    struct model models[AG_BASELINE_MODELS];
    struct session sessions[AG_BASELINE_SESSIONS];
};

static const struct {
    double quantile, margin, initial, least, greatest;
    const char *name;
} rules[] = {
#define AG_BASELINE_RULE(name, text, quantile, margin, initial, least, greatest)       \
    [AG_BASELINE_##name] = {quantile, margin, initial, least, greatest, text},
    AG_BASELINE_MAP(AG_BASELINE_RULE)
#undef AG_BASELINE_RULE
};

const char *
ag_baseline_name(enum ag_baseline which)
{
    return rules[which].name;
}

struct ag_baselines *
ag_baselines_new(void)
{
    struct ag_baselines *b = ag_calloc(1, sizeof(*b));
    if (b != NULL && pthread_mutex_init(&b->lock, NULL) != 0) {
        ag_free(b);
        b = NULL;
    }
    return b;
}

void
ag_baselines_free(struct ag_baselines *b)
{
    if (b != NULL) {
        (void)pthread_mutex_destroy(&b->lock);
        ag_free(b);
    }
}

/* NULL when it was never seen, or was forgotten. */
static struct model *
find_model_lock_held(struct ag_baselines *b, uint64_t key)
{
    for (size_t i = 0; i < AG_BASELINE_MODELS; i++) {
        if (b->models[i].used != 0 && b->models[i].key == key) {
            return &b->models[i];
        }
    }
    return NULL;
}

static struct model *
use_model_lock_held(struct ag_baselines *b, uint64_t key)
{
    struct model *m = find_model_lock_held(b, key);
    if (m == NULL) {
        m = &b->models[0];
        for (size_t i = 1; i < AG_BASELINE_MODELS; i++) {
            m = b->models[i].used < m->used ? &b->models[i] : m;
        }
        memset(m, 0, sizeof(*m));
        m->key = key;
    }
    m->used = ++b->clock;
    return m;
}

static double
threshold_of(const struct ag_quantiles *q, size_t which)
{
    if (q->count < AG_BASELINE_READY) {
        return rules[which].initial;
    }
    double t = ag_quantiles_at(q, rules[which].quantile) * rules[which].margin;
    return fmin(fmax(t, rules[which].least), rules[which].greatest);
}

void
ag_baselines_judge(struct ag_baselines *b, uint64_t model,
                   const double values[AG_BASELINE_COUNT],
                   double thresholds[AG_BASELINE_COUNT])
{
    if (b == NULL) {
        for (size_t i = 0; i < AG_BASELINE_COUNT; i++) {
            thresholds[i] = rules[i].initial;
        }
        return;
    }
    pthread_mutex_lock(&b->lock);
    struct model *m = use_model_lock_held(b, model);
    for (size_t i = 0; i < AG_BASELINE_COUNT; i++) {
        thresholds[i] = threshold_of(&m->of[i], i);
        ag_quantiles_add(&m->of[i], values[i]);
    }
    pthread_mutex_unlock(&b->lock);
}

double
ag_baselines_quantile(struct ag_baselines *b, uint64_t model, enum ag_baseline which,
                      double part)
{
    pthread_mutex_lock(&b->lock);
    const struct model *m = find_model_lock_held(b, model);
    double value = m != NULL ? ag_quantiles_at(&m->of[which], part) : NAN;
    pthread_mutex_unlock(&b->lock);
    return value;
}

/* The place of the session, or the one that it may take. */
static struct session *
session_lock_held(struct ag_baselines *b, uint64_t key)
{
    struct session *set = &b->sessions[key % (AG_BASELINE_SESSIONS / WAYS) * WAYS];
    struct session *oldest = &set[0];
    for (size_t i = 0; i < WAYS; i++) {
        if (set[i].used != 0 && set[i].key == key) {
            return &set[i];
        }
        oldest = set[i].used < oldest->used ? &set[i] : oldest;
    }
    return oldest;
}

void
ag_baselines_get_session(struct ag_baselines *b, uint64_t session,
                         struct ag_session *where)
{
    pthread_mutex_lock(&b->lock);
    const struct session *s = session_lock_held(b, session);
    *where = (struct ag_session){0};
    if (s->used != 0 && s->key == session) {
        *where = s->where;
    }
    pthread_mutex_unlock(&b->lock);
}

void
ag_baselines_put_session(struct ag_baselines *b, uint64_t session,
                         const struct ag_session *where)
{
    pthread_mutex_lock(&b->lock);
    struct session *s = session_lock_held(b, session);
    *s = (struct session){.key = session, .used = ++b->clock, .where = *where};
    pthread_mutex_unlock(&b->lock);
}
