#include "text/words.h"

#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "text/entropy.h"

static void
count_word(struct ag_words *w, uint64_t hash)
{
    uint32_t tag = (uint32_t)(hash >> 32) | 1u; /* 0 is an empty slot */
    size_t home = hash & (AG_WORD_SLOTS - 1);
    for (size_t i = 0; i < AG_WORD_PROBES; i++) {
        size_t at = (home + i) & (AG_WORD_SLOTS - 1);
        if (w->tag[at] == tag || w->tag[at] == 0) {
            w->tag[at] = tag;
            w->count[at]++;
            return;
        }
    }
    w->count[home]++;
}

static void
count_gram(struct ag_words *w)
{
    uint64_t hash = AG_KEY_START;
    for (size_t i = 0; i < AG_GRAM; i++) {
        hash = (hash ^ w->recent[(w->words + i) % AG_GRAM]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    uint32_t *slot = &w->gram[hash & (AG_GRAM_SLOTS - 1)],
             tag = (uint32_t)(hash >> 32) | 1u;
    w->repeated += *slot == tag;
    w->grams++;
    *slot = tag;
}

static void
end_word(struct ag_words *w)
{
    if (!w->in_word) {
        return;
    }
    uint64_t hash = ag_key_mix(w->word);
    w->in_word = 0;
    count_word(w, hash);
    w->recent[w->words % AG_GRAM] = hash;
    w->words++;
    if (w->words >= AG_GRAM) {
        count_gram(w);
    }
}

static inline void
add_to_word(struct ag_words *w, uint32_t character)
{
    if (!w->in_word) {
        w->in_word = 1;
        w->word = AG_KEY_START;
    }
    w->word = (w->word ^ character) * 0x100000001b3u;
}

static inline void
add_letter(struct ag_words *w, enum ag_script script, uint64_t at)
{
    w->letters[script]++;
    if (script != w->running) {
        w->running = script;
        w->run = 0;
        w->run_at = at;
    }
    if (++w->run != AG_SCRIPT_RUN || script == w->settled) {
        return;
    }
    if (w->settled != AG_SCRIPT_NONE && w->switches++ == 0) {
        w->switch_at = w->run_at;
        w->switch_from = w->settled;
        w->switch_to = script;
    }
    w->settled = script;
}

/* `at`: octet at which the character begins. */
static void
add_character(struct ag_words *w, uint32_t character, uint64_t at)
{
    enum ag_script script = ag_script_of(character);
    w->characters++;
    if (script == AG_SCRIPT_NONE) {
        end_word(w);
        return;
    }
    add_letter(w, script, at);
    if (script == AG_SCRIPT_HAN || script == AG_SCRIPT_THAI) {
        end_word(w);
        add_to_word(w, character);
        end_word(w);
    } else {
        add_to_word(w, character);
    }
}

static inline void
add_ascii(struct ag_words *w, uint8_t c, uint64_t at)
{
    w->characters++;
    if ((uint8_t)((c | 0x20) - 'a') < 26) {
        add_letter(w, AG_SCRIPT_LATIN, at);
        add_to_word(w, c | 0x20u);
    } else if ((uint8_t)(c - '0') < 10) {
        add_to_word(w, c);
    } else {
        end_word(w);
    }
}

static uint32_t
decode(const uint8_t *p, size_t length)
{
    uint32_t character = p[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        character = character << 6 | (p[i] & 0x3fu);
    }
    return character;
}

static size_t
length_by_lead(uint8_t lead)
{
    return lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
}

/* What is pending, as far as it is complete or cannot become so; `last`: no more comes.
 */
static void
take_pending(struct ag_words *w, bool last)
{
    while (w->pending_n > 0) {
        uint8_t *p = w->pending;
        uint64_t at = w->octets - w->pending_n;
        size_t taken = p[0] < 0x80 ? 1 : ag_utf8_sequence(p, w->pending_n);
        if (taken == 1) {
            add_ascii(w, p[0], at);
        } else if (taken > 1) {
            add_character(w, decode(p, taken), at);
        } else {
            static const uint8_t fill[] = {0x80, 0xbf, 0x90, 0x8f};
            bool may_follow = false; /* some continuation makes it well-formed */
            size_t whole = p[0] >= 0xc2 && p[0] <= 0xf4 ? length_by_lead(p[0]) : 0;
            for (size_t f = 0; f < sizeof(fill) && !last && w->pending_n < whole; f++) {
                uint8_t guess[4] = {p[0], fill[f], 0x80, 0x80};
                memcpy(guess, p, w->pending_n);
                may_follow = may_follow || ag_utf8_sequence(guess, whole) != 0;
            }
            if (may_follow) {
                return;
            }
            w->damaged++;
            add_character(w, 0xfffd, at);
            taken = 1;
        }
        w->pending_n = (uint8_t)(w->pending_n - taken);
        memmove(p, p + taken, w->pending_n);
    }
}

void
ag_words_add(struct ag_words *w, const uint8_t *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (w->pending_n == 0 && text[i] < 0x80) {
            add_ascii(w, text[i], w->octets++);
            continue;
        }
        w->pending[w->pending_n++] = text[i];
        w->octets++;
        take_pending(w, false);
    }
}

void
ag_words_end(struct ag_words *w)
{
    take_pending(w, true);
    end_word(w);
}

double
ag_words_entropy(const struct ag_words *w)
{
    double sum = 0.0, n = (double)w->words;
    for (size_t i = 0; i < AG_WORD_SLOTS; i += 8) {
        uint32_t any = 0; /* most words come once, and most slots are empty */
        for (size_t j = i; j < i + 8; j++) {
            any |= w->count[j];
        }
        for (size_t j = i; any > 1 && j < i + 8; j++) {
            double c = w->count[j];
            sum += c > 1.0 ? c * log2(c) : 0.0;
        }
    }
    double entropy = n > 0.0 ? log2(n) - sum / n : 0.0;
    return entropy > 0.0 ? entropy : 0.0;
}
