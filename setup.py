"""Builds the extension module; everything else is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "aegis_c._native",
            sources=sorted(glob("aegis_c/core/**/*.c", recursive=True) + glob("aegis_c/bind/*.c")),
            include_dirs=["aegis_c/core", "aegis_c/bind"],
            define_macros=[("_GNU_SOURCE", "1")],
            libraries=["crypto", "pthread"],
            extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden"],
        )
    ]
)
