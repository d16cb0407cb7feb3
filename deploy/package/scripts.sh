# What a package does when it is installed, upgraded and removed: one text for dpkg and rpm, to which
# scripts/package appends a call. UNIT, CONFIGURATION and NEXT are set before it.

# After the files are there; $1 is "upgrade" where an older version was.
installed() {
    if command -v systemd-sysusers > /dev/null; then
        systemd-sysusers "/usr/lib/sysusers.d/$UNIT.conf"
    elif ! getent passwd "$UNIT" > /dev/null; then
        useradd --system --user-group --home-dir "/var/lib/$UNIT" --no-create-home --shell /usr/sbin/nologin "$UNIT"
    fi
    if command -v systemd-tmpfiles > /dev/null; then
        systemd-tmpfiles --create "/usr/lib/tmpfiles.d/$UNIT.conf"
    fi
    running systemctl daemon-reload
    # Drains, and starts the new program; with the socket unit no connection is refused meanwhile.
    [ "$1" != upgrade ] || running systemctl try-restart "$UNIT.service" || true
    if [ ! -e "$CONFIGURATION" ]; then
        echo "$UNIT: not enabled and not started: there is no $CONFIGURATION yet. Next: $NEXT"
    fi
}

# Before the files go away for good.
removing() {
    running systemctl disable --now "$UNIT.service" || true
}

# A command for systemd, where it runs.
running() {
    [ ! -d /run/systemd/system ] || "$@"
}
