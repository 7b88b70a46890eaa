#!/bin/sh
# Run by meson install: manual pages and shell completion, as the program itself writes them.
# Usage: install_pages.sh QLORA MANDIR DATADIR, folders below the prefix.
set -eu
qlora=$1
man=$MESON_INSTALL_DESTDIR_PREFIX/$2/man1
data=$MESON_INSTALL_DESTDIR_PREFIX/$3
mkdir -p "$man" "$data/bash-completion/completions" "$data/zsh/site-functions" "$data/fish/vendor_completions.d"
"$qlora" man --output "$man" --quiet
"$qlora" completion bash >"$data/bash-completion/completions/qlora"
"$qlora" completion zsh >"$data/zsh/site-functions/_qlora"
"$qlora" completion fish >"$data/fish/vendor_completions.d/qlora.fish"
