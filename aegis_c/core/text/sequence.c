#include "text/sequence.h"

#include <math.h>
#include <string.h>

void
ag_sequence_start(struct ag_sequence *s, const struct ag_drift *drift)
{
    memset(s, 0, sizeof(*s));
    s->ema_min = s->window_min = HUGE_VAL;
    if (drift != NULL) {
        s->drift = *drift;
    }
}

static void
end_block(struct ag_sequence *s)
{
    struct ag_drift *d = &s->drift;
    double deviation = sqrt(d->squares / (AG_REFERENCE - 1));
    deviation = deviation > AG_DEVIATION_LEAST ? deviation : AG_DEVIATION_LEAST;
    double z = (d->block / AG_BLOCK - d->mean) / deviation * sqrt(AG_BLOCK);
    d->block = 0.0;
    d->up = fmax(0.0, d->up + z - AG_SLACK);
    d->down = fmax(0.0, d->down - z - AG_SLACK);
    double value = fmax(d->up, d->down);
    if (value > s->drift_max) {
        s->drift_max = value;
        s->drift_at = s->n;
        s->drift_up = d->up >= d->down;
    }
}

static void
add_to_drift(struct ag_sequence *s, double x)
{
    struct ag_drift *d = &s->drift;
    d->n++;
    if (d->n <= AG_REFERENCE) {
        double before = x - d->mean;
        d->mean += before / (double)d->n;
        d->squares += before * (x - d->mean);
        return;
    }
    d->block += x;
    if ((d->n - AG_REFERENCE) % AG_BLOCK == 0) {
        end_block(s);
    }
}

static void
add_to_window(struct ag_sequence *s, double x)
{
    double *oldest = &s->ring[s->n % AG_WINDOW];
    s->window += x - *oldest;
    *oldest = x;
    if (s->n % AG_WINDOW == AG_WINDOW - 1) { /* afresh, before rounding adds up */
        s->window = 0.0;
        for (int i = 0; i < AG_WINDOW; i++) {
            s->window += s->ring[i];
        }
    }
    double mean = s->window / AG_WINDOW;
    if (s->n + 1 >= 2 * AG_WINDOW && mean < s->window_min) {
        s->window_min = mean > 0.0 ? mean : 0.0;
        s->window_at = s->n + 1 - AG_WINDOW;
    }
}

void
ag_sequence_add(struct ag_sequence *s, double x)
{
    if (s->n < AG_WINDOW) {
        s->start += (x - s->start) / (double)(s->n + 1);
    }
    s->ema = s->n == 0 ? x : s->ema + AG_EMA_WEIGHT * (x - s->ema);
    s->ema_min = s->ema < s->ema_min ? s->ema : s->ema_min;
    s->max = s->n == 0 || x > s->max ? x : s->max;
    s->total += x;
    add_to_window(s, x);
    s->n++;
    add_to_drift(s, x);
}
