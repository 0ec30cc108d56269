/* The functions of vector_math.c for one width: LANES doubles in a VDOUBLE, as many
 * words in a VWORD, TARGET the instructions that may be used, NAMED(f) the functions'
 * names. No include guard: read once for each width. Vectors go by pointer, since how
 * they are passed depends on the instructions. */

/* e^x = 2^k * e^r, |r| <= ln(2) / 2, the latter by its Taylor polynomial of degree 9:
 * the first term left out is below 7e-12 of the value. */
INLINE void
NAMED(exp_lanes)(const VDOUBLE *from, VDOUBLE *to)
{
    VWORD enough = (VWORD)(*from >= EXP_LEAST);
    VDOUBLE x = (VDOUBLE)((VWORD)*from & enough);
    VDOUBLE shifted = x * INV_LN2 + SHIFTER;
    VDOUBLE r = x - (shifted - SHIFTER) * LN2;
    VDOUBLE r2 = r * r, r4 = r2 * r2;
    VDOUBLE low = (1.0 + r) + (0.5 + r * (1.0 / 6)) * r2;
    VDOUBLE high = (1.0 / 24 + r * (1.0 / 120)) + (1.0 / 720 + r * (1.0 / 5040)) * r2 +
                   (1.0 / 40320 + r * (1.0 / 362880)) * r4;
    VDOUBLE sum = low + high * r4;
    VWORD scale = ((VWORD)shifted - SHIFTER_BITS + 1023) << 52;
    sum = sum * (VDOUBLE)scale;
    *to = (VDOUBLE)((VWORD)sum & enough);
}

/* x = 2^e * m, m from sqrt(1/2) to sqrt(2); ln(m) = 2 atanh((m - 1) / (m + 1)), by its
 * series to the 13th power: the first term left out is below 4e-13. */
INLINE void
NAMED(log2_lanes)(const VDOUBLE *x, VDOUBLE *to)
{
    VWORD biased = (VWORD)*x - SQRT_HALF_BITS + ONE_BITS;
    VWORD power = (biased >> 52) - 1023;
    VDOUBLE e = (VDOUBLE)(power + SHIFTER_BITS) - SHIFTER;
    VDOUBLE m = (VDOUBLE)((VWORD)*x - (power << 52));
    VDOUBLE s = (m - 1.0) / (m + 1.0), z = s * s, z2 = z * z;
    VDOUBLE low = (1.0 + z * (1.0 / 3)) + (1.0 / 5 + z * (1.0 / 7)) * z2;
    VDOUBLE high = (1.0 / 9 + z * (1.0 / 11)) + z2 * (1.0 / 13);
    VDOUBLE sum = low + high * (z2 * z2);
    *to = e + s * sum * (2 * INV_LN2);
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
        weighted += exp_p * log_p;
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
