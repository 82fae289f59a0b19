#pragma once
// Inner loops that the compiler builds twice, for every x86-64 processor and for those with AVX2; the one that fits is
// chosen when the program starts. Products and sums are rounded apart in both (-ffp-contract=off), so results are equal.

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define SEGSHIP_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define SEGSHIP_CLONES
#endif
