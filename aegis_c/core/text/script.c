#include "text/script.h"

#include <stddef.h>

static const struct {
    uint32_t first, last;
    enum ag_script script;
} ranges[] = {
    {'A', 'Z', AG_SCRIPT_LATIN},          {'a', 'z', AG_SCRIPT_LATIN},
    {0xaa, 0xaa, AG_SCRIPT_LATIN},        {0xba, 0xba, AG_SCRIPT_LATIN},
    {0xc0, 0xd6, AG_SCRIPT_LATIN},        {0xd8, 0xf6, AG_SCRIPT_LATIN},
    {0xf8, 0x24f, AG_SCRIPT_LATIN},       {0x250, 0x2af, AG_SCRIPT_LATIN},
    {0x370, 0x373, AG_SCRIPT_GREEK},      {0x376, 0x377, AG_SCRIPT_GREEK},
    {0x37b, 0x37d, AG_SCRIPT_GREEK},      {0x37f, 0x37f, AG_SCRIPT_GREEK},
    {0x386, 0x386, AG_SCRIPT_GREEK},      {0x388, 0x3ff, AG_SCRIPT_GREEK},
    {0x400, 0x52f, AG_SCRIPT_CYRILLIC},   {0x531, 0x556, AG_SCRIPT_ARMENIAN},
    {0x560, 0x588, AG_SCRIPT_ARMENIAN},   {0x5d0, 0x5f2, AG_SCRIPT_HEBREW},
    {0x620, 0x64a, AG_SCRIPT_ARABIC},     {0x66e, 0x6d5, AG_SCRIPT_ARABIC},
    {0x6fa, 0x6ff, AG_SCRIPT_ARABIC},     {0x700, 0x74f, AG_SCRIPT_OTHER},
    {0x750, 0x77f, AG_SCRIPT_ARABIC},     {0x780, 0x89f, AG_SCRIPT_OTHER},
    {0x8a0, 0x8ff, AG_SCRIPT_ARABIC},     {0x900, 0xdff, AG_SCRIPT_INDIC},
    {0xe01, 0xe3a, AG_SCRIPT_THAI},       {0xe40, 0xe4e, AG_SCRIPT_THAI},
    {0xe80, 0x109f, AG_SCRIPT_OTHER},     {0x10a0, 0x10ff, AG_SCRIPT_GEORGIAN},
    {0x1100, 0x11ff, AG_SCRIPT_HANGUL},   {0x1200, 0x1c7f, AG_SCRIPT_OTHER},
    {0x1c80, 0x1c8f, AG_SCRIPT_CYRILLIC}, {0x1c90, 0x1cbf, AG_SCRIPT_GEORGIAN},
    {0x1e00, 0x1eff, AG_SCRIPT_LATIN},    {0x1f00, 0x1fff, AG_SCRIPT_GREEK},
    {0x2c60, 0x2c7f, AG_SCRIPT_LATIN},    {0x2de0, 0x2dff, AG_SCRIPT_CYRILLIC},
    {0x3005, 0x3007, AG_SCRIPT_HAN},      {0x3040, 0x30ff, AG_SCRIPT_HAN},
    {0x3130, 0x318f, AG_SCRIPT_HANGUL},   {0x31f0, 0x31ff, AG_SCRIPT_HAN},
    {0x3400, 0x4dbf, AG_SCRIPT_HAN},      {0x4e00, 0x9fff, AG_SCRIPT_HAN},
    {0xa640, 0xa69f, AG_SCRIPT_CYRILLIC}, {0xa720, 0xa7ff, AG_SCRIPT_LATIN},
    {0xa8e0, 0xa8ff, AG_SCRIPT_INDIC},    {0xa960, 0xa97f, AG_SCRIPT_HANGUL},
    {0xab30, 0xab6f, AG_SCRIPT_LATIN},    {0xac00, 0xd7ff, AG_SCRIPT_HANGUL},
    {0xf900, 0xfaff, AG_SCRIPT_HAN},      {0xfb00, 0xfb06, AG_SCRIPT_LATIN},
    {0xfb1d, 0xfb4f, AG_SCRIPT_HEBREW},   {0xfb50, 0xfdff, AG_SCRIPT_ARABIC},
    {0xfe70, 0xfefc, AG_SCRIPT_ARABIC},   {0xff21, 0xff3a, AG_SCRIPT_LATIN},
    {0xff41, 0xff5a, AG_SCRIPT_LATIN},    {0xff66, 0xff9f, AG_SCRIPT_HAN},
    {0x20000, 0x323af, AG_SCRIPT_HAN},
};

enum ag_script
ag_script_of(uint32_t character)
{
    size_t low = 0, high = sizeof(ranges) / sizeof(ranges[0]);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (character > ranges[middle].last) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low < sizeof(ranges) / sizeof(ranges[0]) && character >= ranges[low].first) {
        return ranges[low].script;
    }
    return AG_SCRIPT_NONE;
}

const char *
ag_script_name(enum ag_script script)
{
    static const char *const names[] = {
#define AG_SCRIPT_TEXT(name, text) [AG_SCRIPT_##name] = (text),
        AG_SCRIPT_MAP(AG_SCRIPT_TEXT)
#undef AG_SCRIPT_TEXT
    };
    return names[script];
}
