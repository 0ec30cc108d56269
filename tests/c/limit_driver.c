/* Drives limits from a script on standard input, time included, for
 * tests/test_limit_model.py; one answer a line. Lines:
 *   L rate per burst                  one limit more, numbered from 0; "0"
 *   A limit key cost now              acquire: units that remain, or -(wait)
 *   S limit key cost used then now    settle; "0"
 *   P limit limit key cost cost now   plan of two: index of the refusing limit, or 2
 *   N                                 a new table, no limits; "0" */
#include "limit/limit.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct ag_table *table;
static struct ag_limit limits[8];
static size_t limit_count;

static void
fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static uint64_t
told_time(void)
{
    return 0; /* the script's times are the later ones */
}

int
main(void)
{
    char op, key[64];
    unsigned i = 0, j = 0;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    struct ag_error err;
    struct ag_table_options options = {.slots = 64, .clock = told_time};
    while (scanf(" %c", &op) == 1) {
        struct ag_charge charge;
        long long answer = 0;
        if (op == 'N') {
            ag_table_close(table);
            limit_count = 0;
            if (ag_table_open(&options, &table, &err) != AG_OK) {
                fail(err.what);
            }
        } else if (op == 'L' &&
                   scanf("%" SCNu64 "%" SCNu64 "%" SCNu64, &a, &b, &c) == 3 &&
                   limit_count < 8) {
            int n = snprintf(key, sizeof(key), "limit %zu", limit_count);
            if (ag_limit_init(&limits[limit_count++], table, key, (size_t)n, a, b, c,
                              &err) != AG_OK) {
                fail(err.what);
            }
        } else if (op == 'A' &&
                   scanf("%u%63s%" SCNu64 "%" SCNu64, &i, key, &a, &b) == 4) {
            uint64_t tag = ag_limit_tag(&limits[i], key, strlen(key));
            if (ag_limit_acquire(&limits[i], tag, a, b, &charge) != AG_OK) {
                fail("cost above burst");
            }
            answer = charge.allowed
                         ? (long long)ag_gcra_remaining(&limits[i].gcra, charge.level)
                         : -(long long)charge.wait;
        } else if (op == 'S' && scanf("%u%63s%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64,
                                      &i, key, &a, &b, &c, &d) == 6) {
            uint64_t tag = ag_limit_tag(&limits[i], key, strlen(key));
            (void)ag_limit_settle(&limits[i], tag, a, b, c, d);
        } else if (op == 'P' && scanf("%u%u%63s%" SCNu64 "%" SCNu64 "%" SCNu64, &i, &j,
                                      key, &a, &b, &c) == 6) {
            const struct ag_limit *const two[] = {&limits[i], &limits[j]};
            const uint64_t tags[] = {ag_limit_tag(two[0], key, strlen(key)),
                                     ag_limit_tag(two[1], key, strlen(key))};
            const uint64_t costs[] = {a, b};
            struct ag_charge charges[2];
            size_t refused = 0;
            if (ag_plan_acquire(two, tags, costs, 2, c, charges, &refused) != AG_OK) {
                fail("cost above burst");
            }
            answer = (long long)refused;
        } else {
            fail("not a line of the script");
        }
        printf("%lld\n", answer);
        fflush(stdout);
    }
    ag_table_close(table);
    return 0;
}
