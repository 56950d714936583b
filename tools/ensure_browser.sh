#!/bin/sh
# A browser for the page tests. Without root or apt the tests skip and say so.
command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1 && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  echo 'set-up: chromium for the page tests ...'
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      chromium chromium-driver; } >/dev/null 2>&1 || echo 'chromium could not be installed: the page tests skip'
else
  echo 'no chromium and no root: the page tests skip'
fi
exit 0
