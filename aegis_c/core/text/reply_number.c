/* Decimal numbers of JSON, independent of the locale that strtod depends on. */
#include "text/reply_reader.h"

#include <math.h>
#include <string.h>

/* value * 10^exponent, in steps that a double can hold. */
static double
scale(double value, int64_t exponent)
{
    static const double powers[] = {1e1, 1e2, 1e4, 1e8, 1e16, 1e32, 1e64, 1e128, 1e256};
    int64_t n = exponent < 0 ? -exponent : exponent;
    if (n > 700) {
        return exponent < 0 || value == 0.0 ? 0.0 : HUGE_VAL;
    }
    if (n <= 22) { /* these powers are exact */
        double power = 1.0;
        for (int i = 0; i < 5; i++) {
            power *= (n >> i) & 1 ? powers[i] : 1.0;
        }
        return exponent < 0 ? value / power : value * power;
    }
    for (int i = 0; i < 9; i++) {
        if ((n >> i) & 1) {
            value = exponent < 0 ? value / powers[i] : value * powers[i];
        }
    }
    return n >= 512 ? (exponent < 0 ? value / 1e256 / 1e256 : value * 1e256 * 1e256)
                    : value;
}

static bool
is_word(const char *text, size_t n, const char *word)
{
    return strlen(word) == n && memcmp(text, word, n) == 0;
}

/* Digits from text[*i] on: the first 19 that count go into *digits, *exponent counts
 * those that were left out. How many there were. */
static size_t
take_digits(const char *text, size_t n, size_t *i, uint64_t *digits, int64_t *left_out)
{
    size_t start = *i;
    for (; *i < n && text[*i] >= '0' && text[*i] <= '9'; (*i)++) {
        if (*digits < UINT64_C(1000000000000000000)) {
            *digits = *digits * 10 + (uint64_t)(text[*i] - '0');
        } else {
            ++*left_out;
        }
    }
    return *i - start;
}

bool
ag_reader_number(const char *text, size_t n, double *value)
{
    size_t i = 0;
    uint64_t digits = 0;
    int64_t left_out = 0, exponent = 0;
    bool negative = n > 0 && text[0] == '-';
    i += negative;
    if (is_word(text, n, "NaN")) {
        *value = NAN;
        return true;
    }
    if (is_word(text + i, n - i, "Infinity")) {
        *value = negative ? -HUGE_VAL : HUGE_VAL;
        return true;
    }
    if (take_digits(text, n, &i, &digits, &left_out) == 0) {
        return false;
    }
    exponent = left_out;
    if (i < n && text[i] == '.') {
        i++;
        left_out = 0;
        size_t after = take_digits(text, n, &i, &digits, &left_out);
        if (after == 0) {
            return false;
        }
        exponent -= (int64_t)after - left_out;
    }
    if (i < n && (text[i] | 0x20) == 'e') {
        i++;
        bool minus = i < n && text[i] == '-';
        i += i < n && (minus || text[i] == '+');
        uint64_t shift = 0;
        int64_t ignored = 0;
        if (take_digits(text, n, &i, &shift, &ignored) == 0) {
            return false;
        }
        shift = ignored > 0 || shift > 100000 ? 100000 : shift;
        exponent += minus ? -(int64_t)shift : (int64_t)shift;
    }
    double magnitude = scale((double)digits, exponent);
    *value = negative ? -magnitude : magnitude;
    return i == n;
}
