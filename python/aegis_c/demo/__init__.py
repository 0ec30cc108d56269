"""The built-in model and the guided tour: Aegis without a key and without a network.

`language_model` is a real, small n-gram model, trained at start on `corpus.txt` (the project's
own docs, gathered by `corpus`); `sampler` draws from it, `model_server` serves it in the shape of
OpenAI's API, `guided` is the tour behind ``aegis-c demo``.
"""
