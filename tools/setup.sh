# Shared by ./quickstart and ./check (sourced, bash): installs what the build needs, and only what is missing.

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# missing_packages [MODULE:PACKAGE ...]: the Debian packages that the build still lacks, with these modules added.
missing_packages() {
    local pair
    for pair in gcc:gcc ninja:ninja-build meson:meson pkg-config:pkg-config python3:python3; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    printf '#include <stdio.h>\n' | gcc -E - >/dev/null 2>&1 || echo libc6-dev
    for pair in openblas:libopenblas-dev jansson:libjansson-dev libpcre2-8:libpcre2-dev libutf8proc:libutf8proc-dev \
                yaml-0.1:libyaml-dev "$@"; do
        pkg-config --exists "${pair%%:*}" 2>/dev/null || echo "${pair#*:}"
    done
}

# install_missing [MODULE:PACKAGE ...]: returns at once, without network, when nothing is missing.
install_missing() {
    local packages log as_root=
    packages=$(missing_packages "$@" | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null || die "Please install the equivalent of these Debian packages and run this again: $packages"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "Please run as root: apt-get install $packages"
        as_root=sudo
    fi
    say "Installing $packages(apt)"
    log=$(mktemp)
    if ! { $as_root apt-get update -qq &&
           $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } \
           >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt could not install: $packages"
    fi
    rm -f "$log"
}

# build_in DIR [MESON OPTION ...]: configures DIR once and builds it; shows the log only when something goes wrong.
build_in() {
    local dir=$1 log
    shift
    log=$(mktemp)
    if ! { [ -f "$dir/build.ninja" ] || meson setup "$dir" "$@"; } >"$log" 2>&1 </dev/null ||
       ! ninja -C "$dir" >>"$log" 2>&1 </dev/null; then
        tail -n 60 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}
