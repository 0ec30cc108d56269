/* token_key, token_entropy, token_divergence: one token's list at a time. */
#include "agpy.h"
#include "text/divergence.h"

PyDoc_STRVAR(
    token_key_doc,
    "token_key(token, /)\n--\n\n"
    "The 64-bit identity of a token's octets, as ReplyAnalysis.tokens takes it.");

static PyObject *
token_key(PyObject *Py_UNUSED(module), PyObject *token)
{
    if (!PyBytes_Check(token)) {
        return PyErr_Format(PyExc_TypeError, "token must be bytes, not %.100s",
                            Py_TYPE(token)->tp_name);
    }
    return PyLong_FromUnsignedLongLong(ag_token_key(
        (const uint8_t *)PyBytes_AS_STRING(token), (size_t)PyBytes_GET_SIZE(token)));
}

/* The list of a mapping from tokens to logprobs. 0, or -1 with an exception. */
static int
fill(struct ag_distribution *d, PyObject *listed)
{
    PyObject *items = PyMapping_Items(listed);
    int result = -1;
    if (items == NULL) {
        return -1;
    }
    ag_distribution_clear(d);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items); i++) {
        const char *token = NULL;
        Py_ssize_t n = 0;
        double logprob = 0.0;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(items, i), "y#d", &token, &n, &logprob)) {
            goto exit;
        }
        ag_distribution_add(d, ag_token_key((const uint8_t *)token, (size_t)n),
                            logprob);
    }
    result = 0;
exit:
    Py_DECREF(items);
    return result;
}

PyDoc_STRVAR(
    token_entropy_doc,
    "token_entropy(listed, /)\n--\n\n"
    "(lower, upper, tail) of one token: bits, bits, mass outside of the list.\n\n"
    "listed: a mapping of tokens (bytes) to natural logprobs, the alternatives. None\n"
    "when they are no part of a distribution: none, NaN, or a sum above 1.");

static PyObject *
token_entropy(PyObject *Py_UNUSED(module), PyObject *listed)
{
    struct ag_distribution d;
    struct ag_entropy entropy;
    if (fill(&d, listed) < 0) {
        return NULL;
    }
    if (!ag_distribution_close(&d, 0, NULL)) {
        Py_RETURN_NONE;
    }
    entropy = ag_distribution_entropy(&d);
    return Py_BuildValue("ddd", entropy.lower, entropy.upper, entropy.tail);
}

PyDoc_STRVAR(token_divergence_doc,
             "token_divergence(now, before, /)\n--\n\n"
             "(KL, JS) in bits between two such mappings; None when one is unusable.");

static PyObject *
token_divergence(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    struct ag_distribution now, before;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "token_divergence takes two mappings");
        return NULL;
    }
    if (fill(&now, args[0]) < 0 || fill(&before, args[1]) < 0) {
        return NULL;
    }
    if (!ag_distribution_close(&now, 0, NULL) ||
        !ag_distribution_close(&before, 0, NULL)) {
        Py_RETURN_NONE;
    }
    struct ag_distance found = ag_divergence(&now, &before);
    return Py_BuildValue("dd", found.kl, found.js);
}

PyMethodDef agpy_entropy_functions[] = {
    {"token_key", token_key, METH_O, token_key_doc},
    {"token_entropy", token_entropy, METH_O, token_entropy_doc},
    {"token_divergence", AGPY_METHOD(token_divergence), METH_FASTCALL,
     token_divergence_doc},
    {NULL, NULL, 0, NULL},
};
