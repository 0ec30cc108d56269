/* Pages of the id column, shared by ids*.c only; formats in ids.h. */
#ifndef AG_LOG_IDS_PAGE_H
#define AG_LOG_IDS_PAGE_H

#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "hash/crc32c.h"
#include "log/ids.h"

#define AG_IDS_HEADER 16u
#define AG_IDS_KEY 12u

enum ag_ids_kind { AG_IDS_TAIL = 1, AG_IDS_SORTED = 2, AG_IDS_HEAD = 3 };

static inline uint8_t *
ag_ids_slot(uint8_t page[AG_IDS_PAGE], unsigned slot)
{
    return page + AG_IDS_HEADER + slot * AG_UUID_SIZE;
}

static inline unsigned
ag_ids_count(const uint8_t page[AG_IDS_PAGE])
{
    return ag_get_u16le(page + 4);
}

static inline bool
ag_ids_is_none(const uint8_t id[AG_UUID_SIZE])
{
    static const uint8_t none[AG_UUID_SIZE];
    return memcmp(id, none, AG_UUID_SIZE) == 0;
}

static inline uint32_t
ag_ids_page_crc(const uint8_t tag[AG_IDS_TAG], const uint8_t page[AG_IDS_PAGE])
{
    uint32_t crc = ag_crc32c(0, tag, AG_IDS_TAG);
    return ag_crc32c_mask(ag_crc32c(crc, page + 4, AG_IDS_PAGE - 4));
}

/* Fills in the header of a page whose slots, and zeros behind them, are there. */
static inline void
ag_ids_page_seal(const uint8_t tag[AG_IDS_TAG], uint8_t page[AG_IDS_PAGE],
                 enum ag_ids_kind kind, unsigned count, uint64_t first)
{
    ag_put_u16le(page + 4, (uint16_t)count);
    ag_put_u16le(page + 6, (uint16_t)kind);
    ag_put_u64le(page + 8, first);
    ag_put_u32le(page, ag_ids_page_crc(tag, page));
}

static inline bool
ag_ids_page_good(const uint8_t tag[AG_IDS_TAG], const uint8_t page[AG_IDS_PAGE],
                 enum ag_ids_kind kind, uint64_t first)
{
    return ag_get_u16le(page + 6) == kind && ag_get_u64le(page + 8) == first &&
           ag_ids_count(page) <= AG_IDS_SLOTS &&
           ag_get_u32le(page) == ag_ids_page_crc(tag, page);
}

/* "<dir>/<run>.<what>"; run numbers that do not fit 32 bits are of no real log. */
int ag_ids_path(const struct ag_ids_place *place, uint64_t run, const char *what,
                char path[PATH_MAX], struct ag_error *err);

/* Reads `count` pages of a tail from number `page` on. AG_ECORRUPT when one of them is
 * not good even when it is read again (it may just be written). */
int ag_ids_read_tail(const struct ag_ids_place *place, int fd, const char *path,
                     uint64_t run_first, uint64_t page, unsigned count, uint8_t *to,
                     struct ag_error *err);

/* The ids of `count` entries from `first` on, out of the entries themselves. */
int ag_ids_from_entries(const struct ag_ids_source *source, uint64_t first,
                        uint64_t count, uint8_t *to, struct ag_error *err);

#endif
