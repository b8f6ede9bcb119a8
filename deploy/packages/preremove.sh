#!/bin/sh
# Before a deb ("remove") or rpm (0 packages will be left) goes, but not when a newer one takes its place. /var/lib/imgsrv stays.
set -e
case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now imgsrv.service
	fi
	;;
esac
