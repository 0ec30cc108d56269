/* The script of a character: the writing systems of living languages by their blocks
 * (Unicode 15, Scripts.txt), coarse on purpose: Han and both kana are one group, since
 * Japanese mixes them; what is no letter has none. */
#ifndef AG_TEXT_SCRIPT_H
#define AG_TEXT_SCRIPT_H

#include <stdint.h>

#define AG_SCRIPT_MAP(X)                                                               \
    X(NONE, "none")                                                                    \
    X(LATIN, "latin")                                                                  \
    X(GREEK, "greek")                                                                  \
    X(CYRILLIC, "cyrillic")                                                            \
    X(ARMENIAN, "armenian")                                                            \
    X(HEBREW, "hebrew")                                                                \
    X(ARABIC, "arabic")                                                                \
    X(INDIC, "indic")                                                                  \
    X(THAI, "thai")                                                                    \
    X(GEORGIAN, "georgian")                                                            \
    X(HANGUL, "hangul")                                                                \
    X(HAN, "han")                                                                      \
    X(OTHER, "other")

enum ag_script {
#define AG_SCRIPT_ENUM(name, text) AG_SCRIPT_##name,
    AG_SCRIPT_MAP(AG_SCRIPT_ENUM)
#undef AG_SCRIPT_ENUM
        AG_SCRIPT_COUNT
};

enum ag_script ag_script_of(uint32_t character);
const char *ag_script_name(enum ag_script script);

#endif
