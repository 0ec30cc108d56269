#include "log/entry.h"

#include <string.h>

#include "base/base64.h"
#include "base/utf8.h"

/* ---- commitments ---- */

#define SALT_LABEL "aegis/salt/v1"
#define SALT_MESSAGE (sizeof(SALT_LABEL) - 1 + AG_UUID_SIZE + 8)

static void
salt_message(const uint8_t id[AG_UUID_SIZE], enum ag_role role,
             uint8_t to[SALT_MESSAGE])
{
    memcpy(to, SALT_LABEL, sizeof(SALT_LABEL) - 1);
    memcpy(to + sizeof(SALT_LABEL) - 1, id, AG_UUID_SIZE);
    memcpy(to + SALT_MESSAGE - 8, role == AG_ROLE_REQUEST ? "request" : "response", 8);
}

void
ag_salt(const struct ag_hmac *secret, const uint8_t id[AG_UUID_SIZE], enum ag_role role,
        uint8_t salt[AG_HASH_SIZE])
{
    uint8_t message[SALT_MESSAGE];
    struct ag_hmac hmac = *secret;
    salt_message(id, role, message);
    ag_hmac_update(&hmac, message, sizeof(message));
    ag_hmac_final(&hmac, salt);
}

void
ag_commitment_init(struct ag_commitment *c, const struct ag_hmac *secret,
                   const uint8_t id[AG_UUID_SIZE], enum ag_role role)
{
    ag_salt(secret, id, role, c->salt);
    ag_hmac_init(&c->hmac, c->salt, AG_HASH_SIZE);
    c->octets = 0;
    c->finished = false;
}

int
ag_commitment_update(struct ag_commitment *c, const void *data, size_t n)
{
    if (c->finished) {
        return AG_ECLOSED;
    }
    ag_hmac_update(&c->hmac, data, n);
    c->octets += n;
    return AG_OK;
}

void
ag_commitment_finish(struct ag_commitment *c)
{
    if (!c->finished) {
        ag_hmac_final(&c->hmac, c->digest);
        c->finished = true;
    }
}

void
ag_commitment_two(struct ag_commitment c[2], const struct ag_hmac *secret,
                  const uint8_t id[AG_UUID_SIZE], const struct ag_span bodies[2])
{
    uint8_t messages[2][SALT_MESSAGE], salts[2][AG_HASH_SIZE], digests[2][AG_HASH_SIZE];
    struct ag_hmac hmac[2] = {*secret, *secret};
    salt_message(id, AG_ROLE_REQUEST, messages[0]);
    salt_message(id, AG_ROLE_RESPONSE, messages[1]);
    ag_hmac_update_two(hmac, (const struct ag_span[2]){{messages[0], SALT_MESSAGE},
                                                       {messages[1], SALT_MESSAGE}});
    ag_hmac_final_two(hmac, salts);
    ag_hmac_init_two(hmac, (const struct ag_span[2]){{salts[0], AG_HASH_SIZE},
                                                     {salts[1], AG_HASH_SIZE}});
    ag_hmac_update_two(hmac, bodies);
    ag_hmac_final_two(hmac, digests);
    for (int i = 0; i < 2; i++) {
        c[i].hmac = hmac[i]; /* used up */
        memcpy(c[i].salt, salts[i], AG_HASH_SIZE);
        memcpy(c[i].digest, digests[i], AG_HASH_SIZE);
        c[i].octets = bodies[i].size;
        c[i].finished = true;
    }
}

/* ---- identifiers ---- */

static int
hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int
ag_uuid_parse(const char *text, size_t n, uint8_t id[AG_UUID_SIZE])
{
    uint8_t parsed[AG_UUID_SIZE] = {0};
    size_t digits = 0;
    if (n != AG_UUID_TEXT) {
        return AG_EINVAL;
    }
    for (size_t i = 0; i < n; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text[i] != '-') {
                return AG_EINVAL;
            }
            continue;
        }
        int value = hex_value(text[i]);
        if (value < 0) {
            return AG_EINVAL;
        }
        parsed[digits / 2] = (uint8_t)(parsed[digits / 2] << 4 | value);
        digits++;
    }
    memcpy(id, parsed, AG_UUID_SIZE);
    return AG_OK;
}

/* ---- meta ---- */

static bool
is_space(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

size_t
ag_meta_body(const uint8_t *meta, size_t n, bool *is_empty)
{
    while (n > 0 && is_space(meta[n - 1])) {
        n--;
    }
    n--; /* the closing brace */
    size_t last = n;
    while (last > 0 && is_space(meta[last - 1])) {
        last--;
    }
    *is_empty = last == 1;
    return n;
}

int
ag_meta_check(const uint8_t *meta, size_t n, struct ag_error *err)
{
    if (n > AG_ENTRY_MAX - AG_ENTRY_TAIL_MAX) {
        int status =
            ag_fail(err, AG_ETOOBIG, "entry has %zu octets, at most %d allowed", n,
                    AG_ENTRY_MAX - AG_ENTRY_TAIL_MAX);
        ag_error_advice(err, "Cap the strings that come from outside.");
        return status;
    }
    size_t valid = ag_utf8_valid_prefix(meta, n);
    if (valid != n) {
        return ag_fail(err, AG_EINVAL, "entry is not UTF-8 at octet %zu", valid);
    }
    size_t end = n;
    while (end > 0 && is_space(meta[end - 1])) {
        end--;
    }
    if (end < 2 || meta[0] != '{' || meta[end - 1] != '}') {
        return ag_fail(err, AG_EINVAL, "entry is not a JSON object: it must be {...}");
    }
    return AG_OK;
}

/* Just behind the string that opens at text[i] == '"', or n when it never closes. */
static size_t
skip_string(const uint8_t *text, size_t n, size_t i)
{
    for (i++; i < n; i++) {
        if (text[i] == '\\') {
            i++;
        } else if (text[i] == '"') {
            return i + 1;
        }
    }
    return n;
}

static size_t
skip_space(const uint8_t *text, size_t n, size_t i)
{
    while (i < n && is_space(text[i])) {
        i++;
    }
    return i;
}

/* The next member of the top level: its name between the quotes and where its value
 * begins. Moves *at behind the colon and keeps *depth; false when there is none. */
static bool
next_member(const uint8_t *text, size_t n, size_t *at, unsigned *depth, size_t *name,
            size_t *name_n, size_t *value)
{
    for (size_t i = *at; i < n;) {
        if (text[i] == '"') {
            size_t end = skip_string(text, n, i);
            size_t colon = skip_space(text, n, end);
            if (*depth == 1 && colon < n && text[colon] == ':') {
                *name = i + 1;
                *name_n = end - i - 2;
                *value = skip_space(text, n, colon + 1);
                *at = *value;
                return true;
            }
            i = end;
            continue;
        }
        *depth += text[i] == '{' || text[i] == '[';
        *depth -= text[i] == '}' || text[i] == ']';
        i++;
    }
    return false;
}

static bool
is_text(const uint8_t *text, size_t n, const char *expected)
{
    return n == strlen(expected) && memcmp(text, expected, n) == 0;
}

/* The UUID in the string that opens at text[value]. */
static bool
read_id(const uint8_t *text, size_t n, size_t value, uint8_t id[AG_UUID_SIZE])
{
    return value + AG_UUID_TEXT + 1 < n && text[value] == '"' &&
           text[value + AG_UUID_TEXT + 1] == '"' &&
           ag_uuid_parse((const char *)text + value + 1, AG_UUID_TEXT, id) == AG_OK;
}

static enum ag_kind
read_kind(const uint8_t *text, size_t n, size_t value)
{
    if (value >= n || text[value] != '"') {
        return AG_KIND_OTHER;
    }
    size_t end = skip_string(text, n, value), length = end - value - 2;
    if (is_text(text + value + 1, length, "intent")) {
        return AG_KIND_INTENT;
    }
    return is_text(text + value + 1, length, "settle") ? AG_KIND_SETTLE : AG_KIND_OTHER;
}

/* The number at text[value]; UINT64_MAX when there is none that fits. */
static uint64_t
read_number(const uint8_t *text, size_t n, size_t value)
{
    uint64_t number = 0;
    size_t i = value;
    for (; i < n && text[i] >= '0' && text[i] <= '9'; i++) {
        if (number > (UINT64_MAX - 9) / 10) {
            return UINT64_MAX;
        }
        number = number * 10 + (uint64_t)(text[i] - '0');
    }
    return i == value ? UINT64_MAX : number;
}

void
ag_entry_head(const uint8_t *entry, size_t n, struct ag_entry_head *head)
{
    bool has_id = false, has_kind = false, has_of = false;
    size_t at = 0, name, name_n, value;
    unsigned depth = 0;
    memset(head, 0, sizeof(*head));
    head->of = UINT64_MAX;
    while ((!has_id || !has_kind || (!has_of && head->kind == AG_KIND_SETTLE)) &&
           next_member(entry, n, &at, &depth, &name, &name_n, &value)) {
        if (!has_id && is_text(entry + name, name_n, "id")) {
            has_id = true;
            (void)read_id(entry, n, value, head->id);
        } else if (!has_kind && is_text(entry + name, name_n, "kind")) {
            has_kind = true;
            head->kind = read_kind(entry, n, value);
        } else if (!has_of && is_text(entry + name, name_n, "of")) {
            has_of = true;
            head->of = read_number(entry, n, value);
        }
    }
}

int
ag_meta_id(const uint8_t *meta, size_t n, uint8_t id[AG_UUID_SIZE],
           struct ag_error *err)
{
    size_t at = 0, name, name_n, value;
    unsigned depth = 0;
    while (next_member(meta, n, &at, &depth, &name, &name_n, &value)) {
        if (is_text(meta + name, name_n, "id")) {
            if (read_id(meta, n, value, id)) {
                return AG_OK;
            }
            break;
        }
    }
    int status = ag_fail(err, AG_EINVAL, "entry has no member \"id\" that is a UUID");
    ag_error_advice(err, "Give one, or pass finished commitments in place of bodies.");
    return status;
}

/* ---- the final bytes ---- */

static size_t
put_text(char *to, const char *text)
{
    size_t n = strlen(text);
    memcpy(to, text, n);
    return n;
}

static size_t
put_number(char *to, uint64_t number)
{
    char digits[20];
    size_t n = 0;
    do {
        digits[sizeof(digits) - ++n] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    memcpy(to, digits + sizeof(digits) - n, n);
    return n;
}

/* At most 102 octets, so that two of them fit AG_ENTRY_TAIL_MAX. */
static size_t
put_commitment(char *to, bool comma, const char *name, const struct ag_commitment *c)
{
    size_t n = put_text(to, comma ? ",\"" : "\"");
    n += put_text(to + n, name);
    n += put_text(to + n, "\":{\"bytes\":");
    n += put_number(to + n, c->octets);
    n += put_text(to + n, ",\"commitment\":\"");
    n += ag_base64_encode(to + n, c->digest, AG_HASH_SIZE);
    n += put_text(to + n, "\"}");
    return n;
}

size_t
ag_entry_tail(bool meta_is_empty, const struct ag_commitment *request,
              const struct ag_commitment *response, char *tail)
{
    size_t n = 0;
    bool comma = !meta_is_empty;
    if (request != NULL) {
        n += put_commitment(tail, comma, "request", request);
        comma = true;
    }
    if (response != NULL) {
        n += put_commitment(tail + n, comma, "response", response);
    }
    tail[n++] = '}';
    return n;
}
