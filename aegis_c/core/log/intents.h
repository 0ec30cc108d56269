/* The intents that have no settle yet: a set of entry indices, ascending. Intents come
 * in the order of the log, so adding is appending. Owner thread. */
#ifndef AG_LOG_INTENTS_H
#define AG_LOG_INTENTS_H

#include <stddef.h>
#include <stdint.h>

#include "log/entry.h"

struct ag_intents {  /* all zero: empty */
    uint64_t *index; /* owned */
    size_t count, room;
};

/* Makes room for one more, so that ag_intents_take cannot fail. AG_ENOMEM. */
int ag_intents_reserve(struct ag_intents *intents);

/* Takes note of entry `index`, of which `head` is known: an intent is open from here
 * on, a settle closes the one that it names. Anything else changes nothing. */
void ag_intents_take(struct ag_intents *intents, uint64_t index,
                     const struct ag_entry_head *head);

/* `to` (all zero) becomes a copy. AG_ENOMEM. */
int ag_intents_copy(const struct ag_intents *intents, struct ag_intents *to);
void ag_intents_free(struct ag_intents *intents);

#endif
