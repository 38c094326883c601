#!/bin/sh
# onnxruntime.sh FOLDER PYTHON: FOLDER/include and FOLDER/lib with ONNX Runtime, for a build of runtime/cpp.
#
# The library is that of PYTHON's package onnxruntime, which brings no header. That comes from Debian's
# libonnxruntime-dev, unpacked here and not installed: of trixie, as older releases have none. Its version may be older
# than the library's, as ONNX Runtime keeps its C interface.
set -e
folder=$1 python=$2
[ -e "$folder/include/onnxruntime/onnxruntime_cxx_api.h" ] && [ -e "$folder/lib/libonnxruntime.so" ] && exit 0
fail() { echo "onnxruntime: $1" >&2; exit 1; }

capi=$("$python" -c 'import onnxruntime, pathlib; print(pathlib.Path(onnxruntime.__file__).parent / "capi")') ||
    fail "got no package onnxruntime in $python, expected it; pip install onnxruntime"
library=$(ls "$capi"/libonnxruntime.so.1.* 2>/dev/null | head -1)
[ -n "$library" ] || fail "got no libonnxruntime.so in $capi, expected one (Linux); set ONNXRUNTIME_ROOT"
mkdir -p "$folder/lib" "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
ln -sfn "$library" "$folder/lib/libonnxruntime.so.1"
ln -sfn libonnxruntime.so.1 "$folder/lib/libonnxruntime.so"

command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    fail "got no apt-get, expected Debian's for the header; set ONNXRUNTIME_ROOT"
cd "$folder/apt"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" > trixie.list
own="-q -o Dir::Etc::SourceList=$PWD/trixie.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$PWD/lists
     -o Dir::Cache=$PWD/cache -o APT::Sandbox::User=root -o Debug::NoLocking=1"
{ apt-get $own update && apt-get $own download libonnxruntime-dev; } > log 2>&1 ||
    fail "cannot download Debian's libonnxruntime-dev, whose header is needed ($(tail -1 log)); set ONNXRUNTIME_ROOT"
dpkg -x libonnxruntime-dev_*.deb unpacked
cd ..
ln -sfn apt/unpacked/usr/include include
rm -rf apt/lists apt/cache
