/* The functions of vector_math.c for one width: LANES doubles in a VDOUBLE, as many
 * words in a VWORD, TARGET the instructions that may be used, FMA(a, b, c) = a * b + c,
 * rounded once where there is an instruction for it, NAMED(f) the functions' names. No
 * include guard: read once for each width. Vectors go by pointer, since how they are
 * passed depends on the instructions. */

/* e^x = 2^k * e^r, |r| <= ln(2) / 2, the latter by its Taylor polynomial of degree 9:
 * the first term left out is below 7e-12 of the value. */
TARGET INLINE void
NAMED(exp_lanes)(const VDOUBLE *from, VDOUBLE *to)
{
    VWORD enough = (VWORD)(*from >= EXP_LEAST);
    VDOUBLE x = (VDOUBLE)((VWORD)*from & enough);
    VDOUBLE shifted = FMA(x, ALL(INV_LN2), ALL(SHIFTER));
    VDOUBLE r = FMA(ALL(-LN2), shifted - SHIFTER, x);
    VDOUBLE r2 = r * r, r4 = r2 * r2;
    VDOUBLE low = FMA(FMA(r, ALL(1.0 / 6), ALL(0.5)), r2, 1.0 + r);
    VDOUBLE high = FMA(r, ALL(1.0 / 120), ALL(1.0 / 24));
    high = FMA(FMA(r, ALL(1.0 / 5040), ALL(1.0 / 720)), r2, high);
    high = FMA(FMA(r, ALL(1.0 / 362880), ALL(1.0 / 40320)), r4, high);
    VDOUBLE sum = FMA(high, r4, low);
    VWORD scale = ((VWORD)shifted - SHIFTER_BITS + 1023) << 52;
    sum = sum * (VDOUBLE)scale;
    *to = (VDOUBLE)((VWORD)sum & enough);
}

/* x = 2^e * m, m from sqrt(1/2) to sqrt(2); ln(m) = 2 atanh((m - 1) / (m + 1)), by its
 * series to the 13th power: the first term left out is below 4e-13. */
TARGET INLINE void
NAMED(log2_lanes)(const VDOUBLE *x, VDOUBLE *to)
{
    VWORD biased = (VWORD)*x - SQRT_HALF_BITS + ONE_BITS;
    VWORD power = (biased >> 52) - 1023;
    VDOUBLE e = (VDOUBLE)(power + SHIFTER_BITS) - SHIFTER;
    VDOUBLE m = (VDOUBLE)((VWORD)*x - (power << 52));
    VDOUBLE s = (m - 1.0) / (m + 1.0), z = s * s, z2 = z * z;
    VDOUBLE low = FMA(z, ALL(1.0 / 3), ALL(1.0));
    low = FMA(FMA(z, ALL(1.0 / 7), ALL(1.0 / 5)), z2, low);
    VDOUBLE high = FMA(z, ALL(1.0 / 11), ALL(1.0 / 9));
    high = FMA(z2, ALL(1.0 / 13), high);
    VDOUBLE sum = FMA(high, z2 * z2, low);
    *to = FMA(s * (2 * INV_LN2), sum, e);
}

/* The sum of the lanes; halves are added to halves, which waits least. */
INLINE double
NAMED(total)(const VDOUBLE *x)
{
#if LANES == 8
    vdouble4 half[2];
    memcpy(half, x, sizeof(half));
    half[0] += half[1];
    return (half[0][0] + half[0][2]) + (half[0][1] + half[0][3]);
#else
    return ((*x)[0] + (*x)[2]) + ((*x)[1] + (*x)[3]);
#endif
}

INLINE void
NAMED(smaller)(VDOUBLE *least, const VDOUBLE *x)
{
    VWORD below = (VWORD)(*x < *least);
    *least = (VDOUBLE)(((VWORD)*x & below) | ((VWORD)*least & ~below));
}

INLINE double
NAMED(smallest)(const VDOUBLE *x)
{
    vdouble4 least;
    memcpy(&least, x, sizeof(least));
#if LANES == 8
    vdouble4 high;
    memcpy(&high, (const double *)x + 4, sizeof(high));
    smaller_plain(&least, &high);
#endif
    double a = least[0] < least[2] ? least[0] : least[2];
    double b = least[1] < least[3] ? least[1] : least[3];
    return a < b ? a : b;
}

/* The last lanes of a list that does not fill them are the end of the list, of which
 * only what is new counts; a list shorter than the lanes is filled up with what does
 * not count. */
TARGET static void
NAMED(take_list)(const double *from, const uint64_t *key, size_t n,
                 const struct ag_list_room *to, struct ag_list_sums *sums)
{
    static const double id[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    VDOUBLE sum = {0}, weighted = {0}, logs = {0}, bad = {0};
    VDOUBLE most = (VDOUBLE){0} + HUGE_VAL, least = most, ids;
    VDOUBLE floor = (VDOUBLE){0} + AG_LOGPROB_LEAST;
    double few[LANES] = {0}, end = LANES;
    uint64_t few_keys[LANES] = {0};
    memcpy(&ids, id, sizeof(ids));
    if (n < LANES) {
        for (size_t i = 0; i < n; i++) {
            few[i] = from[i];
            few_keys[i] = key[i];
        }
        from = few;
        key = few_keys;
        end = (double)n;
        n = LANES;
    }
    for (size_t i = 0; i < n; i += LANES) {
        size_t at = i + LANES <= n ? i : n - LANES;
        VDOUBLE given, x, p, other;
        VWORD keys, enough, counts;
        VTAG tags = {0};
        memcpy(&given, from + at, sizeof(given));
        memcpy(&keys, key + at, sizeof(keys));
        memcpy(to->keys + at, &keys, sizeof(keys));
        TAGS_OF(&keys, &tags);
        memcpy(to->tags + at, &tags, sizeof(tags));
        enough = (VWORD)(given > AG_LOGPROB_LEAST);
        x = (VDOUBLE)(((VWORD)given & enough) | ((VWORD)floor & ~enough));
        memcpy(to->x + at, &x, sizeof(x));
        NAMED(exp_lanes)(&x, &p);
        memcpy(to->p + at, &p, sizeof(p));
        counts = (VWORD)(ids >= (double)(i - at)) & (VWORD)(ids < end);
        x = (VDOUBLE)((VWORD)x & counts);
        other = (VDOUBLE)(((VWORD)p & counts) | ((VWORD)most & ~counts));
        p = (VDOUBLE)((VWORD)p & counts);
        sum += p;
        weighted = FMA(p, x, weighted);
        logs += x;
        NAMED(smaller)(&least, &other);
        /* 0 in the lanes that are usable, NaN, which stays one, in the others */
        bad += (VDOUBLE)(~(VWORD)(given <= AG_LIST_MOST) & counts);
    }
    sums->exp.sum = NAMED(total)(&sum);
    sums->exp.weighted = NAMED(total)(&weighted);
    sums->exp.logs = NAMED(total)(&logs);
    sums->smallest = NAMED(smallest)(&least);
    sums->usable = NAMED(total)(&bad) == 0.0;
}

/* What fills the last lanes has p = 0. */
TARGET static void
NAMED(exp_many)(double *x, size_t n, double *p, struct ag_exp_sums *sums)
{
    VDOUBLE sum = {0}, weighted = {0}, logs = {0};
    size_t used = n;
    for (; n % LANES != 0; n++) {
        x[n] = AG_LOGPROB_LEAST;
    }
    for (size_t i = 0; i < n; i += LANES) {
        VDOUBLE log_p, exp_p;
        memcpy(&log_p, x + i, sizeof(log_p));
        NAMED(exp_lanes)(&log_p, &exp_p);
        memcpy(p + i, &exp_p, sizeof(exp_p));
        sum += exp_p;
        weighted = FMA(exp_p, log_p, weighted);
        logs += log_p;
    }
    sums->sum = NAMED(total)(&sum);
    sums->weighted = NAMED(total)(&weighted);
    sums->logs = NAMED(total)(&logs) - (double)(n - used) * AG_LOGPROB_LEAST;
}

TARGET static void
NAMED(log2_many)(double *x, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        VDOUBLE lanes;
        memcpy(&lanes, x + i, sizeof(lanes));
        NAMED(log2_lanes)(&lanes, &lanes);
        memcpy(x + i, &lanes, sizeof(lanes));
    }
}
