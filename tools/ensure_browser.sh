#!/bin/sh
# Programs of the distribution that tests use: a browser for the pages, mbpoll as another Modbus master.
# Without root or apt those tests skip and say so.
missing=''
{ command -v chromium && command -v chromedriver; } >/dev/null 2>&1 || missing='chromium chromium-driver'
command -v mbpoll >/dev/null 2>&1 || missing="$missing mbpoll"
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  echo "set-up: $missing for the tests ..."
  apt-get update -qq >/dev/null 2>&1
  for package in $missing; do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 \
      || echo "$package could not be installed: the tests that need it skip"
  done
else
  echo "no $missing and no root: the tests that need it skip"
fi
exit 0
