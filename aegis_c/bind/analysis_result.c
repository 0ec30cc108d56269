/* The analysis of a reply as a dict that fits an entry: finite numbers, names and
 * positions, never text of the reply. */
#include "analysis_type.h"

#include <math.h>

/* Puts a new reference into the dict, consumed. 0, or -1 with an exception. */
static int
put(PyObject *dict, const char *name, PyObject *value)
{
    int result = value != NULL ? PyDict_SetItemString(dict, name, value) : -1;
    Py_XDECREF(value);
    return result;
}

/* To six decimals; every figure here is far below 1e12. */
static PyObject *
rounded(double x)
{
    return PyFloat_FromDouble(isfinite(x) ? floor(x * 1e6 + 0.5) / 1e6 : 0.0);
}

static int
put_double(PyObject *dict, const char *name, double x)
{
    return put(dict, name, rounded(x));
}

static int
put_count(PyObject *dict, const char *name, uint64_t n)
{
    return put(dict, name, PyLong_FromUnsignedLongLong(n));
}

/* Only when there are some. */
static int
put_some(PyObject *dict, const char *name, uint64_t n)
{
    return n > 0 ? put_count(dict, name, n) : 0;
}

static double
mean_of(double total, uint64_t n)
{
    return n > 0 ? total / (double)n : 0.0;
}

static const char *
missing_because(const struct ag_analysis *a)
{
    if (a->octets == 0) {
        return "empty reply";
    }
    if (a->reader.documents == 0) {
        return a->reader.damaged > 0 ? "not a JSON object" : "no events";
    }
    if (a->skipped > 0) {
        return "no usable top_logprobs";
    }
    return "neither text nor logprobs";
}

static int
put_lists(PyObject *dict, const struct ag_analysis *a)
{
    if (a->tokens == 0) {
        return 0;
    }
    if (put_count(dict, "count", a->tokens) < 0 ||
        put_double(dict, "mean", mean_of(a->entropy.total, a->tokens)) < 0 ||
        put_double(dict, "max", a->entropy.max) < 0 ||
        put_double(dict, "mean_upper", mean_of(a->upper_total, a->tokens)) < 0 ||
        put_double(dict, "max_upper", a->upper_max) < 0 ||
        put_double(dict, "tail", mean_of(a->tail_total, a->tokens)) < 0) {
        return -1;
    }
    if (a->pairs == 0) {
        return 0;
    }
    return put_double(dict, "kl_mean", mean_of(a->kl_total, a->pairs)) < 0 ||
                   put_double(dict, "kl_max", a->kl_max) < 0 ||
                   put_double(dict, "js_mean", mean_of(a->js_total, a->pairs)) < 0 ||
                   put_double(dict, "js_max", a->js_max) < 0 ||
                   put_count(dict, "js_at", a->js_at) < 0
               ? -1
               : 0;
}

static int
put_sequence(PyObject *dict, const struct ag_analysis *a)
{
    const struct ag_sequence *s = ag_analysis_sequence(a);
    if (a->surprisals > 0 &&
        (put_count(dict, "surprisals", a->surprisals) < 0 ||
         put_double(dict, "surprisal_mean",
                    mean_of(a->surprisal_total, a->surprisals)) < 0 ||
         put_double(dict, "surprisal_max", a->surprisal_max) < 0)) {
        return -1;
    }
    if (s->n == 0) {
        return 0;
    }
    if (put_double(dict, "ema", s->ema) < 0 ||
        put_double(dict, "ema_min", s->ema_min) < 0 ||
        put_double(dict, "drift", s->drift_max) < 0) {
        return -1;
    }
    if (isfinite(s->window_min) && (put_double(dict, "window_min", s->window_min) < 0 ||
                                    put_count(dict, "window_at", s->window_at) < 0)) {
        return -1;
    }
    return 0;
}

static PyObject *
scripts_of(const struct ag_words *w)
{
    PyObject *dict = PyDict_New();
    for (int i = 0; i < AG_SCRIPT_COUNT && dict != NULL; i++) {
        if (put_some(dict, ag_script_name((enum ag_script)i), w->letters[i]) < 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

static PyObject *
text_of(const struct ag_analysis *a)
{
    const struct ag_words *w = &a->words;
    PyObject *dict = PyDict_New();
    if (dict == NULL || put_count(dict, "octets", w->octets) < 0 ||
        put_some(dict, "damaged", w->damaged) < 0 ||
        put_count(dict, "words", w->words) < 0 ||
        put_double(dict, "entropy", ag_words_entropy(w)) < 0 ||
        put_double(dict, "repetition", mean_of((double)w->repeated, w->grams)) < 0 ||
        put_double(dict, "compression", ag_repetition_compression(&a->repetition)) <
            0 ||
        put_some(dict, "loop", a->repetition.loop.octets) < 0 ||
        put_some(dict, "signs", a->repetition.signs.octets) < 0 ||
        put(dict, "scripts", scripts_of(w)) < 0) {
        Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *
list_of(const struct ag_finding *findings, size_t n)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; i < n && list != NULL; i++) {
        const struct ag_finding *f = &findings[i];
        PyObject *one =
            Py_BuildValue("{s:s,s:s,s:N,s:N,s:K}", "kind", f->kind, "reason", f->reason,
                          "value", rounded(f->value), "threshold",
                          rounded(f->threshold), "at", (unsigned long long)f->at);
        if (one == NULL || PyList_Append(list, one) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(one);
    }
    return list;
}

PyObject *
agpy_analysis_result(const struct ag_analysis *a, const struct ag_finding *findings,
                     size_t n)
{
    bool available = a->tokens > 0 || a->surprisals > 0 || a->words.octets > 0;
    const char *method = a->tokens > 0       ? "top_logprobs"
                         : a->surprisals > 0 ? "logprobs"
                                             : "text";
    PyObject *dict = PyDict_New();
    if (dict == NULL || put(dict, "available", PyBool_FromLong(available)) < 0 ||
        put(dict, available ? "method" : "reason",
            PyUnicode_FromString(available ? method : missing_because(a))) < 0 ||
        put(dict, "findings", list_of(findings, n)) < 0 || put_lists(dict, a) < 0 ||
        put_sequence(dict, a) < 0 ||
        (a->words.octets > 0 && put(dict, "text", text_of(a)) < 0) ||
        (a->choices > 1 && put_count(dict, "choices", a->choices) < 0) ||
        put_some(dict, "skipped", a->skipped) < 0 ||
        (a->tokens > 0 && put_some(dict, "unlisted", a->unlisted) < 0) ||
        put_some(dict, "impossible", a->impossible) < 0 ||
        put_some(dict, "other_tokens", a->other_tokens) < 0 ||
        put_some(dict, "other_octets", a->other_octets) < 0 ||
        (available && put_some(dict, "damaged", a->reader.damaged) < 0)) {
        Py_CLEAR(dict);
    }
    return dict;
}
