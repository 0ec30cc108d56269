#include "agpy.h"

#ifdef AG_GIL_TIMES

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"

#define SLOTS 256 /* methods that can be timed; more stay as they are */

struct slot {
    PyCFunction function; /* what the table held; cast to its true type at the call */
    const char *owner, *name;
    _Atomic uint64_t calls, total_ns, max_ns;
};

/* One call of ours on this thread; calls nest where Python code runs inside one. */
struct running {
    uint64_t detached_ns, detached_at;
};

static struct slot slots[SLOTS];
static size_t slots_used; /* before the first call */
static _Thread_local struct running *innermost;

PyThreadState *
agpy_save_thread(void)
{
    if (innermost != NULL) {
        innermost->detached_at = ag_clock_ns();
    }
    return (PyEval_SaveThread)();
}

void
agpy_restore_thread(PyThreadState *state)
{
    (PyEval_RestoreThread)(state);
    if (innermost != NULL && innermost->detached_at != 0) {
        innermost->detached_ns += ag_clock_ns() - innermost->detached_at;
        innermost->detached_at = 0;
    }
}

static void
note(struct slot *slot, uint64_t ns)
{
    atomic_fetch_add_explicit(&slot->calls, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&slot->total_ns, ns, memory_order_relaxed);
    uint64_t most = atomic_load_explicit(&slot->max_ns, memory_order_relaxed);
    while (ns > most && !atomic_compare_exchange_weak_explicit(&slot->max_ns, &most, ns,
                                                               memory_order_relaxed,
                                                               memory_order_relaxed)) {
    }
}

#define TIMED(slot, call)                                                              \
    do {                                                                               \
        struct running here = {0}, *outer = innermost;                                 \
        innermost = &here;                                                             \
        uint64_t started = ag_clock_ns();                                              \
        PyObject *result = (call);                                                     \
        uint64_t took = ag_clock_ns() - started;                                       \
        innermost = outer;                                                             \
        note(slot, took - here.detached_ns);                                           \
        return result;                                                                 \
    } while (0)

typedef PyObject *(*fast_function)(PyObject *, PyObject *const *, Py_ssize_t);
typedef PyObject *(*fast_names_function)(PyObject *, PyObject *const *, Py_ssize_t,
                                         PyObject *);

static PyObject *
timed_plain(struct slot *slot, PyObject *self, PyObject *arg)
{
    TIMED(slot, slot->function(self, arg));
}

static PyObject *
timed_names(struct slot *slot, PyObject *self, PyObject *args, PyObject *names)
{
    PyCFunctionWithKeywords function =
        (PyCFunctionWithKeywords)(void (*)(void))slot->function;
    TIMED(slot, function(self, args, names));
}

static PyObject *
timed_fast(struct slot *slot, PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    TIMED(slot, ((fast_function)(void (*)(void))slot->function)(self, args, n));
}

static PyObject *
timed_fast_names(struct slot *slot, PyObject *self, PyObject *const *args, Py_ssize_t n,
                 PyObject *names)
{
    fast_names_function function = (fast_names_function)(void (*)(void))slot->function;
    TIMED(slot, function(self, args, n, names));
}

/* A C function cannot know which method it stands for: there is one for each slot. */
/* clang-format off */
#define SIXTEEN(X, h)                                                                  \
    X(h##0) X(h##1) X(h##2) X(h##3) X(h##4) X(h##5) X(h##6) X(h##7)                    \
    X(h##8) X(h##9) X(h##A) X(h##B) X(h##C) X(h##D) X(h##E) X(h##F)
#define ALL(X)                                                                         \
    SIXTEEN(X, 0x0) SIXTEEN(X, 0x1) SIXTEEN(X, 0x2) SIXTEEN(X, 0x3)                    \
    SIXTEEN(X, 0x4) SIXTEEN(X, 0x5) SIXTEEN(X, 0x6) SIXTEEN(X, 0x7)                    \
    SIXTEEN(X, 0x8) SIXTEEN(X, 0x9) SIXTEEN(X, 0xA) SIXTEEN(X, 0xB)                    \
    SIXTEEN(X, 0xC) SIXTEEN(X, 0xD) SIXTEEN(X, 0xE) SIXTEEN(X, 0xF)
/* clang-format on */

#define FUNCTIONS(i)                                                                   \
    static PyObject *plain_##i(PyObject *self, PyObject *arg)                          \
    {                                                                                  \
        return timed_plain(&slots[i], self, arg);                                      \
    }                                                                                  \
    static PyObject *names_##i(PyObject *self, PyObject *args, PyObject *names)        \
    {                                                                                  \
        return timed_names(&slots[i], self, args, names);                              \
    }                                                                                  \
    static PyObject *fast_##i(PyObject *self, PyObject *const *args, Py_ssize_t n)     \
    {                                                                                  \
        return timed_fast(&slots[i], self, args, n);                                   \
    }                                                                                  \
    static PyObject *fast_names_##i(PyObject *self, PyObject *const *args,             \
                                    Py_ssize_t n, PyObject *names)                     \
    {                                                                                  \
        return timed_fast_names(&slots[i], self, args, n, names);                      \
    }
ALL(FUNCTIONS)

#define ROW(i)                                                                         \
    {plain_##i, AGPY_METHOD(names_##i), AGPY_METHOD(fast_##i),                         \
     AGPY_METHOD(fast_names_##i)},
static const PyCFunction stand_ins[SLOTS][4] = {ALL(ROW)};

static void
exchange(PyMethodDef *methods, const char *owner)
{
    for (PyMethodDef *m = methods; m->ml_name != NULL && slots_used < SLOTS; m++) {
        int kind = 0;
        switch (m->ml_flags & ~(METH_CLASS | METH_STATIC | METH_COEXIST)) {
        case METH_NOARGS:
        case METH_O:
        case METH_VARARGS:
            kind = 0;
            break;
        case METH_VARARGS | METH_KEYWORDS:
            kind = 1;
            break;
        case METH_FASTCALL:
            kind = 2;
            break;
        case METH_FASTCALL | METH_KEYWORDS:
            kind = 3;
            break;
        default:
            continue;
        }
        slots[slots_used].function = m->ml_meth;
        slots[slots_used].owner = owner;
        slots[slots_used].name = m->ml_name;
        m->ml_meth = stand_ins[slots_used][kind];
        slots_used++;
    }
}

static void
exchange_type(const PyType_Spec *spec)
{
    for (const PyType_Slot *slot = spec->slots; slot->slot != 0; slot++) {
        if (slot->slot == Py_tp_methods) {
            exchange(slot->pfunc, strrchr(spec->name, '.') + 1);
        }
    }
}

static void
exchange_all(void)
{
#define EXCHANGE_TYPE(field, spec) exchange_type(&spec);
    AGPY_TYPES(EXCHANGE_TYPE)
#undef EXCHANGE_TYPE
#define EXCHANGE_TABLE(table) exchange(table, "");
    AGPY_FUNCTIONS(EXCHANGE_TABLE)
#undef EXCHANGE_TABLE
}

void
agpy_gil_times_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, exchange_all);
}

PyObject *
agpy_gil_times(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *found = PyDict_New();
    for (size_t i = 0; found != NULL && i < slots_used; i++) {
        struct slot *slot = &slots[i];
        uint64_t calls = atomic_load_explicit(&slot->calls, memory_order_relaxed);
        if (calls == 0) {
            continue;
        }
        PyObject *name = PyUnicode_FromFormat(
            "%s%s%s", slot->owner, slot->owner[0] != '\0' ? "." : "", slot->name);
        PyObject *times = Py_BuildValue(
            "KKK", calls, atomic_load_explicit(&slot->total_ns, memory_order_relaxed),
            atomic_load_explicit(&slot->max_ns, memory_order_relaxed));
        if (name == NULL || times == NULL || PyDict_SetItem(found, name, times) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(name);
        Py_XDECREF(times);
    }
    return found;
}

#else

typedef int agpy_gil_times_are_not_built; /* a translation unit is never empty */

#endif
