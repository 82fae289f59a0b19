// What the sanitizers are to leave alone: OpenVINO and OpenCV keep memory until the end, and free with another allocator.

extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
    return "detect_leaks=0:alloc_dealloc_mismatch=0";
}

extern "C" __attribute__((visibility("default"))) const char* __ubsan_default_options() { return "print_stacktrace=1"; }
