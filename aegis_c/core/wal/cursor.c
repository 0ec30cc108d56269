/* The second consumer's view: records in order, from memory while the ring still has
 * them, else from the files. */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "wal/reader.h"
#include "wal/state.h"

struct ag_wal_cursor {
    struct ag_wal *wal; /* borrowed */
    uint64_t next_seq;
    bool in_ring;
    uint64_t position;            /* of next_seq in the ring, while in_ring */
    struct ag_wal_reader *reader; /* owned; NULL until the files are needed */
    uint8_t *copy;                /* owned */
    size_t capacity;
};

int
ag_wal_cursor_open(struct ag_wal *wal, uint64_t from_seq, struct ag_wal_cursor **out,
                   struct ag_error *err)
{
    struct ag_wal_cursor *cursor = ag_calloc(1, sizeof(*cursor));
    uint8_t *copy = ag_alloc(AG_WAL_BLOCK);
    if (cursor == NULL || copy == NULL) {
        ag_free(cursor);
        ag_free(copy);
        return ag_fail(err, AG_ENOMEM, "no memory for a cursor");
    }
    cursor->wal = wal;
    cursor->next_seq = from_seq != 0 ? from_seq : 1;
    cursor->copy = copy;
    cursor->capacity = AG_WAL_BLOCK;
    *out = cursor;
    return AG_OK;
}

void
ag_wal_cursor_close(struct ag_wal_cursor *cursor)
{
    if (cursor != NULL) {
        ag_wal_reader_close(cursor->reader);
        ag_free(cursor->copy);
        ag_free(cursor);
    }
}

bool
ag_wal_cursor_in_ring(const struct ag_wal_cursor *cursor)
{
    return cursor->in_ring;
}

/* A batch that began with next_seq, still in the ring. */
static bool
find_in_ring(struct ag_wal_cursor *cursor)
{
    struct ag_wal *wal = cursor->wal;
    bool found = false;
    (void)pthread_mutex_lock(&wal->lock);
    uint64_t kept = wal->mark_count < AG_WAL_MARKS ? wal->mark_count : AG_WAL_MARKS;
    uint64_t low = wal->mark_count - kept, high = wal->mark_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (wal->marks[middle % AG_WAL_MARKS].seq < cursor->next_seq) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low < wal->mark_count &&
        wal->marks[low % AG_WAL_MARKS].seq == cursor->next_seq) {
        cursor->position = wal->marks[low % AG_WAL_MARKS].position;
        found = true;
    }
    (void)pthread_mutex_unlock(&wal->lock);
    return found;
}

static int
next_from_ring(struct ag_wal_cursor *cursor, uint32_t *n, struct ag_error *err)
{
    struct ag_ring_entry entry;
    for (;;) {
        int got = ag_ring_copy(&cursor->wal->ring, cursor->position, cursor->next_seq,
                               cursor->copy, cursor->capacity, &entry);
        if (got == AG_ETOOBIG) {
            uint8_t *grown = ag_realloc(cursor->copy, AG_WAL_PAYLOAD_MAX);
            if (grown == NULL) {
                return ag_fail(err, AG_ENOMEM, "no memory for a record");
            }
            cursor->copy = grown;
            cursor->capacity = AG_WAL_PAYLOAD_MAX;
            continue;
        }
        if (got == 1) {
            cursor->position = ag_ring_entry_end(&entry);
            *n = entry.n;
        }
        return got;
    }
}

int
ag_wal_cursor_next(struct ag_wal_cursor *cursor, uint64_t up_to, uint64_t *seq,
                   const uint8_t **payload, uint32_t *n, struct ag_error *err)
{
    if (cursor->next_seq > up_to) {
        return 0;
    }
    if (!cursor->in_ring) {
        cursor->in_ring = find_in_ring(cursor);
    }
    if (cursor->in_ring) {
        int got = next_from_ring(cursor, n, err);
        if (got < 0) {
            return got;
        }
        if (got == 1) {
            ag_wal_reader_close(cursor->reader);
            cursor->reader = NULL;
            *seq = cursor->next_seq++;
            *payload = cursor->copy;
            return 1;
        }
        cursor->in_ring = false;
    }
    /* Overwritten, hence durable, hence in the files; what is not durable is not there
     * yet. */
    if (cursor->next_seq > ag_wal_durable(cursor->wal)) {
        return 0;
    }
    struct ag_wal *wal = cursor->wal;
    if (cursor->reader == NULL) {
        const char *archive = wal->archive[0] != '\0' ? wal->archive : NULL;
        int status = ag_wal_reader_open(wal->io, wal->path, archive, cursor->next_seq,
                                        false, &cursor->reader, err);
        if (status != AG_OK) {
            return status;
        }
    }
    int got = ag_wal_reader_next(cursor->reader, seq, payload, n, err);
    if (got == 0) {
        ag_fail(err, AG_ECORRUPT, "a durable record is not in the log");
        ag_error_file(err, wal->path, AG_NO_POSITION);
        ag_error_index(err, cursor->next_seq);
        ag_error_advice(err, "Run `aegis-c wal verify DIR`");
        return AG_ECORRUPT;
    }
    if (got == 1) {
        if (*seq != cursor->next_seq) {
            ag_fail(err, AG_ECORRUPT, "the log continues with sequence %" PRIu64, *seq);
            ag_error_index(err, cursor->next_seq);
            return AG_ECORRUPT;
        }
        cursor->next_seq++;
    }
    return got;
}
