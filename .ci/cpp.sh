# Sourced by .ci/run: whether the C++ runner can be built here. Where this is root on a Debian, what is missing is installed.
cpp_packages="g++ cmake pkg-config libopencv-dev libnifti-dev libzip-dev libjpeg-dev libpng-dev libssl-dev nlohmann-json3-dev zlib1g-dev"
clang_packages="clang"

# Those of the packages named that are not installed; all of them where nobody can tell.
missing() {
    local package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

installed() {
    local wanted
    wanted=$(missing "$@")
    if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $(echo $wanted)" >&2
        # shellcheck disable=SC2086  # several words are meant
        { timeout 120 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq $wanted; } >&2 </dev/null || true
        wanted=$(missing "$@")
    fi
    [ -z "$wanted" ] || { echo "$(echo $wanted): not installed" >&2; return 1; }
}

cpp_ready() {
    # shellcheck disable=SC2086
    [ -n "${cpp_found-}" ] || if installed $cpp_packages; then cpp_found=yes; else
        cpp_found=no
        echo "the C++ runner is neither built nor tested" >&2
    fi
    [ "$cpp_found" = yes ]
}

sanitizers_ready() {
    installed $clang_packages || { echo "the C++ runner is not tried under sanitizers, its readers are not fuzzed" >&2; return 1; }
}
