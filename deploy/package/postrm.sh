case "$1" in
remove)
    running systemctl daemon-reload
    ;;
purge)
    # The state is worth nothing to another installation, and an old copy of it is dangerous. What is
    # not the package's own stays, unless CLAVIGER_PURGE=all says otherwise: certificates, keys, evidence.
    rm -rf "/var/lib/$UNIT"
    if [ "$UNIT" = claviger ]; then
        if [ "${CLAVIGER_PURGE:-}" = all ]; then
            rm -rf /etc/claviger /var/log/claviger
        else
            echo "$UNIT: kept /etc/claviger and the audit log in /var/log/claviger; CLAVIGER_PURGE=all removes them"
        fi
    fi
    running systemctl daemon-reload
    ;;
esac
