#include "limit/limit.h"

int
ag_limit_init(struct ag_limit *limit, struct ag_table *table, const char *name,
              size_t name_n, uint64_t rate, uint64_t per_ns, uint64_t burst,
              struct ag_error *err)
{
    struct ag_gcra gcra;
    int status = ag_gcra_init(&gcra, rate, per_ns, burst, err);
    if (status != AG_OK) {
        return status;
    }
    struct ag_siphash_key key = ag_table_key(table);
    limit->gcra = gcra;
    limit->table = table;
    limit->key.k0 = ag_siphash13(key, name, name_n);
    key.k0 = ~key.k0;
    limit->key.k1 = ag_siphash13(key, name, name_n);
    return AG_OK;
}

int
ag_limit_acquire(const struct ag_limit *limit, uint64_t tag, uint64_t cost,
                 uint64_t now, struct ag_charge *charge)
{
    const struct ag_gcra *g = &limit->gcra;
    if (cost > g->burst) {
        return AG_ETOOBIG;
    }
    uint64_t increment = cost > 0 ? ag_gcra_increment(g, cost) : 0;
    ag_table_charge(limit->table, tag, cost > 0 ? increment : g->unit, increment,
                    g->tolerance, now, charge);
    return AG_OK;
}

int
ag_limit_look(const struct ag_limit *limit, uint64_t tag, uint64_t cost, uint64_t now,
              struct ag_charge *charge)
{
    const struct ag_gcra *g = &limit->gcra;
    if (cost > g->burst) {
        return AG_ETOOBIG;
    }
    ag_table_charge(limit->table, tag, ag_gcra_increment(g, cost > 0 ? cost : 1), 0,
                    g->tolerance, now, charge);
    return AG_OK;
}

bool
ag_limit_settle(const struct ag_limit *limit, uint64_t tag, uint64_t cost,
                uint64_t used, uint64_t then, uint64_t now)
{
    uint64_t charged = ag_gcra_increment(&limit->gcra, cost);
    uint64_t due = ag_gcra_increment(&limit->gcra, used);
    if (due > charged) {
        return ag_table_debt(limit->table, tag, due - charged, now);
    }
    uint64_t drained = now > then ? now - then : 0;
    uint64_t left = charged > drained ? charged - drained : 0;
    uint64_t unused = charged - due;
    ag_table_refund(limit->table, tag, unused < left ? unused : left);
    return true;
}

int
ag_plan_acquire(const struct ag_limit *const limits[], const uint64_t tags[],
                const uint64_t costs[], size_t n, uint64_t now,
                struct ag_charge charges[], size_t *refused)
{
    uint64_t longest = 0;
    size_t done = 0;
    *refused = n;
    for (size_t i = 0; i < n; i++) {
        if (ag_limit_look(limits[i], tags[i], costs[i], now, &charges[i]) != AG_OK) {
            *refused = i;
            return AG_ETOOBIG;
        }
        if (!charges[i].allowed && charges[i].wait >= longest) {
            longest = charges[i].wait;
            *refused = i;
        }
    }
    if (*refused < n) {
        return AG_OK;
    }
    for (; done < n; done++) {
        (void)ag_limit_acquire(limits[done], tags[done], costs[done], now,
                               &charges[done]);
        if (!charges[done].allowed) {
            *refused = done;
            break;
        }
    }
    if (done == n) {
        return AG_OK;
    }
    uint64_t later = ag_table_clock(limits[0]->table);
    for (size_t i = 0; i < done; i++) {
        (void)ag_limit_settle(limits[i], tags[i], costs[i], 0, charges[i].at, later);
        charges[i].level =
            charges[i].level > ag_gcra_increment(&limits[i]->gcra, costs[i])
                ? charges[i].level - ag_gcra_increment(&limits[i]->gcra, costs[i])
                : 0;
    }
    return AG_OK;
}
