#!/bin/sh
# After a deb or rpm has put its files in place. The service isn't started: whoever wants the client alone doesn't want it. One that
# runs already goes on as the new release.
set -e
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers imgsrv.conf
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart imgsrv.service
fi
