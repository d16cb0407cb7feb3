//! What is refused, with which words: one change to a good configuration each.

/// (what to find in `good.toml`, what to write in its place, what is said about it).
pub(crate) const BAD: &[(&str, &str, &str)] = &[
    ("[audit]\n", "[audit\n", "claviger.toml:15: this is not TOML: unclosed table, expected `]`"),
    (
        "[audit]\n",
        "[audits]\n",
        "claviger.toml:1: audit: is missing; add [audit] with file = \"…\", or off = true to go without\nclaviger.toml:15: audits: is not a known field; did you mean \"audit\"?",
    ),
    (
        "[audit]\noff = true\n",
        "",
        "claviger.toml:1: audit: is missing; add [audit] with file = \"…\", or off = true to go without",
    ),
    (
        "[server]\n",
        "[serve]\n",
        "claviger.toml:2: serve: is not a known field; did you mean \"server\"?\nclaviger.toml:6: server.listen: is missing; write listen = [\"0.0.0.0:8443\"]",
    ),
    (
        "state_dir = \"state\"\n",
        "state_dir = \"state\"\nstate_dir = \"other\"\n",
        "claviger.toml:5: this is not TOML: duplicate key",
    ),
    (
        "listen = [\"127.0.0.1:8443\", \"unix:claviger.sock\"]\n",
        "",
        "claviger.toml:2: server.listen: is missing; write listen = [\"0.0.0.0:8443\"]",
    ),
    (
        "listen = [\"127.0.0.1:8443\", \"unix:claviger.sock\"]",
        "listen = \"127.0.0.1:8443\"",
        "claviger.toml:3: server.listen: is a string; write a list such as [\"0.0.0.0:8443\"]",
    ),
    (
        "listen = [\"127.0.0.1:8443\", \"unix:claviger.sock\"]",
        "listen = []",
        "claviger.toml:3: server.listen: is empty; write at least one address, such as \"0.0.0.0:8443\"",
    ),
    (
        "\"127.0.0.1:8443\", \"unix",
        "\"localhost:8443\", \"unix",
        "claviger.toml:3: server.listen[0]: \"localhost:8443\" is no IP address and port; write \"0.0.0.0:8443\", \"[::]:8443\" or \"127.0.0.1:8443\"",
    ),
    (
        "\"127.0.0.1:8443\", \"unix",
        "\"127.0.0.1\", \"unix",
        "claviger.toml:3: server.listen[0]: \"127.0.0.1\" is no IP address and port; write \"0.0.0.0:8443\", \"[::]:8443\" or \"127.0.0.1:8443\"",
    ),
    (
        "\"127.0.0.1:8443\", \"unix",
        "8443, \"unix",
        "claviger.toml:3: server.listen[0]: is a number; write a string",
    ),
    (
        "\"unix:claviger.sock\"]",
        "\"unix:\"]",
        "claviger.toml:3: server.listen[1]: has no path; write \"unix:/run/claviger/claviger.sock\"",
    ),
    (
        "\"unix:claviger.sock\"]",
        "\"unix:claviger.sock\",\n  \"127.0.0.1:8443\"]",
        "claviger.toml:4: server.listen[2]: is the same as server.listen[0]; leave one of them out",
    ),
    (
        "\"unix:claviger.sock\"]",
        "\"unix:claviger.sock\",\n  \"[::]:8443\", \"0.0.0.0:8443\"]",
        "claviger.toml:4: server.listen[3]: overlaps with 127.0.0.1:8443; leave one of them out",
    ),
    (
        "\"unix:claviger.sock\"]",
        "\"unix:/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"]",
        "claviger.toml:3: server.listen[1]: is a path of 121 bytes; a Unix socket's path has at most 107: write a shorter one",
    ),
    (
        "state_dir = \"state\"",
        "state_dri = \"state\"",
        "claviger.toml:2: server.state_dir: is missing; provider \"hsm-a\" has a PIN, and what became of it must survive a restart: write state_dir = \"/var/lib/claviger\"\nclaviger.toml:4: server.state_dri: is not a known field; did you mean \"state_dir\"?",
    ),
    (
        "state_dir = \"state\"\n",
        "",
        "claviger.toml:2: server.state_dir: is missing; provider \"hsm-a\" has a PIN, and what became of it must survive a restart: write state_dir = \"/var/lib/claviger\"",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = 5",
        "claviger.toml:4: server.state_dir: is a number; write a string",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = \"\"",
        "claviger.toml:4: server.state_dir: is no path; write one",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = \"state\"\nmax_connections = 0",
        "claviger.toml:5: server.max_connections: is 0; write a number from 1 to 16777216",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = \"state\"\nmax_handshakes = \"many\"",
        "claviger.toml:5: server.max_handshakes: is a string; write a whole number",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = \"state\"\nhandshake_timeout = \"5\"",
        "claviger.toml:5: server.handshake_timeout: \"5\" is no duration; write a number and a unit: \"500ms\", \"30s\", \"5m\", \"72h\" or \"1d\"",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = \"state\"\nhandshake_timeout = \"0s\"",
        "claviger.toml:5: server.handshake_timeout: \"0s\" leaves no time; write at least \"1ms\"",
    ),
    (
        "state_dir = \"state\"",
        "state_dir = \"state\"\nreflection = \"yes\"",
        "claviger.toml:5: server.reflection: is a string; write true or false",
    ),
    (
        "certificate = \"server.crt\"\n",
        "",
        "claviger.toml:6: server.tls.certificate: is missing; write the path of the server's certificate chain (PEM)",
    ),
    (
        "private_key = \"server.key\"",
        "private_key = [\"server.key\"]",
        "claviger.toml:8: server.tls.private_key: is a list; write a string",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }\n",
        "",
        "claviger.toml:6: server.tls.client_ca: is missing; write client_ca = { clients = \"…/clients.pem\" }",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }",
        "client_ca = \"clients.pem\"",
        "claviger.toml:9: server.tls.client_ca: has no name; write client_ca = { clients = \"…/clients.pem\" }",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }",
        "client_ca = {}",
        "claviger.toml:9: server.tls.client_ca: is empty: no client could connect; name at least one bundle of client CAs",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }",
        "client_ca = { Clients = \"clients.pem\" }",
        "claviger.toml:9: server.tls.client_ca.Clients: \"Clients\" is no name; write 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", a letter or digit first",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }",
        "client_ca = { clients = \"clients.pem\", others = \"others.pem\" }",
        "claviger.toml:52: callers[0].match.ca: is missing; there are several client CAs, so write which one issues this certificate: ca = \"clients\" or \"others\"\nclaviger.toml:62: callers[2].match.ca: is missing; there are several client CAs, so write which one issues this certificate: ca = \"clients\" or \"others\"",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }",
        "client_ca = { clients = \"clients.pem\" }\ncrl = \"clients.crl\"",
        "claviger.toml:10: server.tls.crl: is a string; write a list of paths",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }",
        "client_ca = { clients = \"clients.pem\" }\ncrl_grace = \"3 days\"",
        "claviger.toml:10: server.tls.crl_grace: \"3 days\" is no duration; write a number and a unit: \"500ms\", \"30s\", \"5m\", \"72h\" or \"1d\"",
    ),
    (
        "client_ca = { clients = \"clients.pem\" }",
        "client_ca = { clients = \"clients.pem\" }\nmin_version = \"1.1\"",
        "claviger.toml:10: server.tls.min_version: \"1.1\" is not known; write \"1.3\" or \"1.2\"",
    ),
    (
        "[server.tls]\ncertificate = \"server.crt\"\nprivate_key = \"server.key\"\nclient_ca = { clients = \"clients.pem\" }\n",
        "",
        "claviger.toml:3: server.listen: has a TCP address, and there is no [server.tls]; add certificate, private_key and client_ca there, or listen on \"unix:…\" only",
    ),
    (
        "listen = \"127.0.0.1:9443\"\n",
        "",
        "claviger.toml:11: operations.listen: is missing; write listen = \"127.0.0.1:9443\"",
    ),
    (
        "listen = \"127.0.0.1:9443\"",
        "listen = \"unix:operations.sock\"",
        "claviger.toml:12: operations.listen: \"unix:operations.sock\" is a Unix socket, and kubelets and load balancers ask over TCP; write \"127.0.0.1:9443\"",
    ),
    (
        "listen = \"127.0.0.1:9443\"",
        "listen = \"127.0.0.1:8443\"",
        "claviger.toml:12: operations.listen: is in server.listen too; write another port",
    ),
    (
        "listen = \"127.0.0.1:9443\"",
        "listen = \"0.0.0.0:8443\"",
        "claviger.toml:12: operations.listen: overlaps with 127.0.0.1:8443 in server.listen; write another port",
    ),
    (
        "readers = [\"prometheus\"]",
        "readers = [\"promethous\"]",
        "claviger.toml:13: operations.readers[0]: \"promethous\" is no caller; did you mean \"prometheus\"?",
    ),
    (
        "readers = [\"prometheus\"]",
        "readers = [\"nobody-here\"]",
        "claviger.toml:13: operations.readers[0]: \"nobody-here\" is no caller; add [[callers]] with this name, or leave it out",
    ),
    (
        "readers = [\"prometheus\"]",
        "readers = [\"prometheus\", \"prometheus\"]",
        "claviger.toml:13: operations.readers[1]: is listed a second time; leave it out",
    ),
    (
        "readers = [\"prometheus\"]",
        "readers = [1]",
        "claviger.toml:13: operations.readers[0]: is a number; write a string",
    ),
    (
        "off = true",
        "off = false",
        "claviger.toml:15: audit.file: is missing; write file = \"/var/log/claviger/audit.jsonl\", or off = true to go without",
    ),
    (
        "off = true",
        "off = true\nfile = \"audit.jsonl\"",
        "claviger.toml:15: audit: has a file and off = true; leave one of them out",
    ),
    (
        "off = true",
        "file = \"stdout\"",
        "claviger.toml:16: audit.file: is no file: a record is on the disk before its answer leaves, which no stream can promise; write file = \"/var/log/claviger/audit.jsonl\" and have your collector read that",
    ),
    (
        "off = true",
        "file = \"-\"",
        "claviger.toml:16: audit.file: is no file: a record is on the disk before its answer leaves, which no stream can promise; write file = \"/var/log/claviger/audit.jsonl\" and have your collector read that",
    ),
    (
        "off = true",
        "fiel = \"audit.jsonl\"",
        "claviger.toml:15: audit.file: is missing; write file = \"/var/log/claviger/audit.jsonl\", or off = true to go without\nclaviger.toml:16: audit.fiel: is not a known field; did you mean \"file\"?",
    ),
    (
        "off = true",
        "file = \"a\"\nmax_size = \"10MB\"",
        "claviger.toml:17: audit.max_size: \"10MB\" is no size from 1MiB to 1024GiB; write \"256MiB\"",
    ),
    (
        "off = true",
        "file = \"a\"\nmax_age = \"10s\"",
        "claviger.toml:17: audit.max_age: is less than a minute; write max_age = \"24h\"",
    ),
    (
        "off = true",
        "file = \"a\"\nkeep = 7",
        "claviger.toml:17: audit.keep: counts files that the daemon itself leaves; write max_size = \"256MiB\" or max_age = \"24h\" too, or leave it out",
    ),
    (
        "off = true",
        "file = \"a\"\ncheckpoints = { origin = \"a\", file = \"c\" }",
        "claviger.toml:17: audit.checkpoints.key: is missing; write the path of an Ed25519 key (`openssl genpkey -algorithm ed25519` makes one), or signed_by = \"…\" with a key of [keys] that signs",
    ),
    (
        "off = true",
        "file = \"a\"\ncheckpoints = { origin = \"a\", file = \"c\", key = \"k\", signed_by = \"user-keys\" }",
        "claviger.toml:17: audit.checkpoints.signed_by: \"user-keys\" has no active version that signs; write sign_algorithms = [\"PS256\"] in [keys.user-keys]\nclaviger.toml:17: audit.checkpoints: has key and signed_by; leave one of them out",
    ),
    (
        "off = true",
        "file = \"a\"\ncheckpoints = { origin = \"a\", file = \"c\", signed_by = \"user-kes\" }",
        "claviger.toml:17: audit.checkpoints.signed_by: \"user-kes\" is no key; did you mean \"user-keys\"?",
    ),
    (
        "off = true",
        "file = \"a\"\nhang_limit = \"2m\"",
        "claviger.toml:17: audit.hang_limit: is not from 100ms to 1m; write hang_limit = \"1500ms\"",
    ),
    (
        "off = true",
        "file = \"a\"\nsinks = { siem = { address = \"unix:/dev/log\" } }",
        "claviger.toml:17: audit.sinks.siem.type: is missing; write type = \"syslog\", \"journald\" or \"otlp\"",
    ),
    (
        "off = true",
        "file = \"a\"\nsinks = { siem = { type = \"kafka\" } }",
        "claviger.toml:17: audit.sinks.siem.type: \"kafka\" is not known; write type = \"syslog\", \"journald\" or \"otlp\"",
    ),
    (
        "off = true",
        "file = \"a\"\nsinks = { siem = { type = \"syslog\", address = \"tcp://siem:514\" } }",
        "claviger.toml:17: audit.sinks.siem.address: \"tcp://siem:514\" is no address; write address = \"tls:siem.example.org:6514\" or \"unix:/dev/log\"",
    ),
    (
        "off = true",
        "file = \"a\"\nsinks = { siem = { type = \"syslog\", address = \"tls:siem.example.org:6514\" } }",
        "claviger.toml:17: audit.sinks.siem.ca: is missing; write the path of the CA certificates of the collector (PEM)",
    ),
    (
        "off = true",
        "file = \"a\"\nsinks = { siem = { type = \"syslog\", address = \"unix:/dev/log\", ca = \"ca.pem\" } }",
        "claviger.toml:17: audit.sinks.siem.ca: is for an address such as \"tls:siem.example.org:6514\"; leave it out",
    ),
    (
        "off = true",
        "file = \"a\"\nsinks = { j = { type = \"journald\", address = \"unix:/dev/log\", spool = \"1kB\" } }",
        "claviger.toml:17: audit.sinks.j.address: is not a known field; known are type, socket, best_effort, spool\nclaviger.toml:17: audit.sinks.j.spool: \"1kB\" is no size from 1MiB to 1024GiB; write \"256MiB\"",
    ),
    (
        "off = true",
        "file = \"a\"\nsinks = { c = { type = \"otlp\", endpoint = \"http://collector:4317\", address = \"x\" } }",
        "claviger.toml:17: audit.sinks.c.address: is not a known field; known are type, best_effort, spool, endpoint, ca, certificate, private_key, headers, service_name\nclaviger.toml:17: audit.sinks.c.endpoint: \"http://collector:4317\" is http, which is for loopback: who calls for which key is not sent in the clear; write endpoint = \"https://collector.example.org:4317\"",
    ),
    (
        "off = true\n",
        "off = true\n[telemetry]\n",
        "claviger.toml:17: telemetry.endpoint: is missing; write endpoint = \"https://collector.example.org:4317\"",
    ),
    (
        "off = true\n",
        "off = true\n[telemetry]\nendpoint = \"http://127.0.0.1:4317\"\nca = \"ca.pem\"\nsampling = \"1.5\"\n",
        "claviger.toml:19: telemetry.ca: is for an endpoint with https; leave it out\nclaviger.toml:20: telemetry.sampling: \"1.5\" is no share of the traces; write sampling = \"100%\", \"5%\" or \"0.1%\", or leave [telemetry] out",
    ),
    (
        "off = true\n",
        "off = true\n[telemetry]\nendpoint = \"https://collector.example.org/v1/traces\"\nservice_name = \"a b\"\n",
        "claviger.toml:18: telemetry.endpoint: \"https://collector.example.org/v1/traces\" has more than a host and a port; write endpoint = \"https://collector.example.org:4317\"\nclaviger.toml:19: telemetry.service_name: \"a b\" is no name; write 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", a letter or digit first",
    ),
    (
        "off = true\n",
        "off = true\n[policy]\nthreshold = 2\n",
        "claviger.toml:17: policy.signers: is missing; write signers = [{ name = \"alice\", ssh = \"ssh-ed25519 AAAA…\" }]",
    ),
    (
        "off = true\n",
        "off = true\n[policy]\nthreshold = 2\nsigners = [{ name = \"alice\", ssh = \"ssh-rsa AAAA\" }]\n",
        "claviger.toml:19: policy.signers[0].ssh: \"ssh-rsa AAAA\" is no key that can sign; write an Ed25519 key as in a .pub file of ssh-keygen, or the second line of minisign.pub",
    ),
    (
        "off = true\n",
        "off = true\n[policy]\nthreshold = 2\nsigners = [{ name = \"alice\", ssh = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\" }]\n",
        "claviger.toml:18: policy.threshold: is 2, and there are 1 signers: no configuration could be accepted",
    ),
    (
        "off = true\n",
        "off = true\n[policy]\nthreshold = 1\nsigners = [{ name = \"alice\", ssh = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\" }, { name = \"bob\", ssh = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me\" }]\n",
        "claviger.toml:19: policy.signers[1].ssh: is the key of policy.signers[0] too; each signer has a key of its own",
    ),
    (
        "off = true\n",
        "off = true\n[log]\nformat = \"xml\"\n",
        "claviger.toml:18: log.format: \"xml\" is not known; write \"text\" or \"json\"",
    ),
    (
        "off = true\n",
        "off = true\n[log]\nfilter = \"claviger=loud\"\n",
        "claviger.toml:18: log.filter: \"claviger=loud\" is no filter (error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5); write \"info\" or \"claviger=debug,warn\"",
    ),
    (
        "type = \"software\"\n",
        "",
        "claviger.toml:25: providers.files.type: is missing; write type = \"aws-kms\", \"azure-key-vault\", \"gcp-kms\", \"pkcs11\", \"software\" or \"vault-transit\"",
    ),
    (
        "type = \"software\"",
        "type = \"sofware\"",
        "claviger.toml:26: providers.files.type: \"sofware\" is not known; write \"aws-kms\", \"azure-key-vault\", \"gcp-kms\", \"pkcs11\", \"software\" or \"vault-transit\"",
    ),
    (
        "type = \"software\"",
        "type = 1",
        "claviger.toml:26: providers.files.type: is a number; write a string",
    ),
    (
        "directory = \"keys\"\n",
        "",
        "claviger.toml:25: providers.files: `directory` is missing, and there are no `files`; write the folder that holds the key files",
    ),
    (
        "directory = \"keys\"",
        "directory = \"\"",
        "claviger.toml:27: providers.files.directory: is no path; write one",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\nfiles = { \"kc.pfx\" = { file = \"\" } }",
        "claviger.toml:28: providers.files.files.\"kc.pfx\".file: is no path; write one",
    ),
    (
        "module = \"libhsm.so\"",
        "module = \"\"",
        "claviger.toml:20: providers.hsm-a.module: is no path; write one",
    ),
    (
        "pin = { file = \"pin\" }",
        "pin = { file = \"\" }",
        "claviger.toml:22: providers.hsm-a.pin.file: is no path; write one",
    ),
    (
        "[providers.files]",
        "[providers.v]\ntype = \"vault-transit\"\naddress = \"https://v\"\nca = \"\"\nauth = { token = { file = \"t\" } }\n[providers.files]",
        "claviger.toml:28: providers.v.ca: is no path; write one",
    ),
    (
        "directory = \"keys\"",
        "directry = \"keys\"",
        "claviger.toml:27: providers.files.directry: is not a known field; did you mean \"directory\"?",
    ),
    (
        "directory = \"keys\"",
        "directory = 5",
        "claviger.toml:27: providers.files.directory: invalid type: integer `5`, expected path string",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\nrequired = \"no\"",
        "claviger.toml:28: providers.files.required: is a string; write true or false",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\npassphrase = { vault = \"secret/x\" }",
        "claviger.toml:28: providers.files.passphrase.vault: is no field of a secret in Vault; write { provider = \"…\", path = \"secret/data/…\", field = \"…\" }",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\npassphrase = { environment = \"X\" }",
        "claviger.toml:28: providers.files.passphrase.environment: \"environment\" is not known; write \"file\", \"credential\" or \"vault\"",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\npassphrase = { vault = { provider = \"files\", path = \"secret/claviger\", field = \"\" } }",
        "claviger.toml:28: providers.files.passphrase.vault.provider: \"files\" is of type \"software\", which holds no secrets of others; name a provider of type \"vault-transit\"\nclaviger.toml:28: providers.files.passphrase.vault: \"secret/claviger\" is no path of a secret in KV version 2; write mount/data/name, such as secret/data/claviger",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\npassphrase = { vault = { provider = \"fils\", path = \"secret/data/x\", field = \"a\" } }",
        "claviger.toml:28: providers.files.passphrase.vault.provider: \"fils\" is no provider; did you mean \"files\"?",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\npassphrase = { vault = { provider = \"files\", path = 5, fild = \"a\" } }",
        "claviger.toml:28: providers.files.passphrase.vault.fild: is not a known field; did you mean \"field\"?\nclaviger.toml:28: providers.files.passphrase.vault.path: is no string; write one\nclaviger.toml:28: providers.files.passphrase.vault.field: is missing; write { provider = \"…\", path = \"secret/data/…\", field = \"…\" }",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\nfiles = { \"kc.pfx\" = \"do not print me\" }",
        "claviger.toml:28: providers.files.files.\"kc.pfx\": must not stand in this file; write { file = \"…\" }, the path of a file that holds it, or { credential = \"…\" } for systemd",
    ),
    (
        "[providers.files]",
        "[providers.v]\ntype = \"vault-transit\"\naddress = \"https://v\"\nauth = { token = { vault = { provider = \"v\", path = \"secret/data/x\", field = \"a\" } } }\n[providers.files]",
        "claviger.toml:28: providers.v.auth.token.vault: would make this provider need Vault in order to log in to Vault; write { file = \"…\" } or { credential = \"…\" }",
    ),
    (
        "directory = \"keys\"",
        "directory = \"keys\"\npassphrase = \"do not print me\"",
        "claviger.toml:28: providers.files.passphrase: must not stand in this file; write { file = \"…\" }, the path of a file that holds it, or { credential = \"…\" } for systemd",
    ),
    (
        "pin = { file = \"pin\" }",
        "pin = 123456",
        "claviger.toml:22: providers.hsm-a.pin: must not stand in this file; write { file = \"…\" }, the path of a file that holds it, or { credential = \"…\" } for systemd",
    ),
    (
        "module = \"libhsm.so\"",
        "module = \"libhsm.so\"\nmodul = \"x\"",
        "claviger.toml:21: providers.hsm-a.modul: is not a known field; did you mean \"module\"?",
    ),
    (
        "[providers.files]",
        "[providers.Files]",
        "claviger.toml:25: providers.Files: \"Files\" is no name; write 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", a letter or digit first\nclaviger.toml:40: keys.user-keys.versions[1].replicas[0].provider: \"files\" is no provider; did you mean \"Files\"?\nclaviger.toml:48: keys.other.versions[0].replicas[0].provider: \"files\" is no provider; did you mean \"Files\"?",
    ),
    (
        "[providers.files]",
        "[providers.\"my files\"]",
        "claviger.toml:25: providers.\"my files\": \"my files\" is no name; write 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", a letter or digit first\nclaviger.toml:40: keys.user-keys.versions[1].replicas[0].provider: \"files\" is no provider; add [providers.files]\nclaviger.toml:48: keys.other.versions[0].replicas[0].provider: \"files\" is no provider; add [providers.files]",
    ),
    (
        "environment = { HSM_CONF = \"hsm.conf\" }",
        "environment = { \"1HSM\" = \"hsm.conf\" }",
        "claviger.toml:18: providers.hsm-a: environment has \"1HSM\", which is no name of an environment variable; write letters, digits and \"_\", no digit first",
    ),
    (
        "environment = { HSM_CONF = \"hsm.conf\" }",
        "environment = { HSM_CONF = 1 }",
        "claviger.toml:23: providers.hsm-a.environment.HSM_CONF: invalid type: integer `1`, expected a string",
    ),
    (
        "environment = { HSM_CONF = \"hsm.conf\" }",
        "environment = { HSM_CONF = \"hsm.conf\" }\nisolation = \"none\"",
        "claviger.toml:18: providers.hsm-a: environment is for a module with a process of its own: set it for the daemon itself, such as by Environment= in its unit, or leave out isolation = \"none\"",
    ),
    (
        "[keys.user-keys]",
        "[keys.User-keys]",
        "claviger.toml:29: keys.User-keys: \"User-keys\" is no name; write 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", a letter or digit first\nclaviger.toml:29: keys.User-keys.versions: is missing; add [[keys.User-keys.versions]] with version, state and replicas\nclaviger.toml:31: keys.user-keys.algorithms: is missing; write algorithms = [\"RSA-OAEP\"]",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]\n",
        "",
        "claviger.toml:29: keys.user-keys.algorithms: is missing; write algorithms = [\"RSA-OAEP\"]",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = [\"RSA-OAEP\"]\nbalance = \"fastest\"",
        "claviger.toml:31: keys.user-keys.balance: \"fastest\" is not known; write \"priority\" or \"least-busy\"",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = [\"RSA-OAEP\"]\nbalance = 2",
        "claviger.toml:31: keys.user-keys.balance: is a number; write \"priority\" or \"least-busy\"",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = []",
        "claviger.toml:30: keys.user-keys.algorithms: is empty; write algorithms = [\"RSA-OAEP\"]",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = [\"RSA-OAEP-1\"]",
        "claviger.toml:30: keys.user-keys.algorithms[0]: \"RSA-OAEP-1\" is not known; allowed: RSA-OAEP, RSA-OAEP-256, RSA-OAEP-384, RSA-OAEP-512, RSA1_5",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = [\"RSA-OAEP\", \"RSA-OAEP\"]",
        "claviger.toml:30: keys.user-keys.algorithms[1]: lists RSA-OAEP a second time; leave it out",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = \"RSA-OAEP\"",
        "claviger.toml:30: keys.user-keys.algorithms: is a string; write a list of algorithms",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithm = [\"RSA-OAEP\"]",
        "claviger.toml:29: keys.user-keys.algorithms: is missing; write algorithms = [\"RSA-OAEP\"]\nclaviger.toml:30: keys.user-keys.algorithm: is not a known field; did you mean \"algorithms\"?",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = [\"RSA-OAEP\"]\nsign_algorithms = [\"RS1\"]",
        "claviger.toml:31: keys.user-keys.sign_algorithms[0]: \"RS1\" is not known; allowed: RS256, RS384, RS512, PS256, PS384, PS512",
    ),
    (
        "algorithms = [\"RSA-OAEP\"]",
        "algorithms = [\"RSA1_5\"]\nsign_algorithms = [\"PS256\"]",
        "claviger.toml:29: keys.user-keys: unwraps RSA1_5 and signs: a padding oracle would let an attacker forge signatures; give signing a key of its own, or leave RSA1_5 out",
    ),
    (
        "algorithms = [\"RSA-OAEP-256\"]",
        "algorithms = [\"RSA1_5\"]\nsign_algorithms = [\"PS256\"]",
        "claviger.toml:36: keys.user-keys.versions[1]: unwraps RSA1_5 and signs: a padding oracle would let an attacker forge signatures; give signing a key of its own, or leave RSA1_5 out",
    ),
    (
        "state = \"unwrap-only\"\nalgorithms = [\"RSA-OAEP-256\"]",
        "state = \"unwrap-only\"\nalgorithms = []",
        "claviger.toml:39: keys.user-keys.versions[1].algorithms: leaves this version without any algorithm; write [\"RSA-OAEP\"]",
    ),
    (
        "[[keys.other.versions]]\nversion = 1\nstate = \"active\"\nreplicas = [{ provider = \"files\", locator = \"other.pem\" }]\n",
        "versions = []\n",
        "claviger.toml:45: keys.other.versions: is empty; add [[keys.other.versions]] with version, state and replicas",
    ),
    (
        "[[keys.other.versions]]\nversion = 1\nstate = \"active\"\nreplicas = [{ provider = \"files\", locator = \"other.pem\" }]\n",
        "",
        "claviger.toml:43: keys.other.versions: is missing; add [[keys.other.versions]] with version, state and replicas",
    ),
    (
        "[[keys.other.versions]]",
        "[keys.other.versions]",
        "claviger.toml:45: keys.other.versions: is a table; write [[keys.other.versions]]",
    ),
    (
        "version = 2\n",
        "version = 0\n",
        "claviger.toml:32: keys.user-keys.versions[0].version: is 0; write a number from 1 to 4294967295",
    ),
    (
        "version = 2\n",
        "version = 1\n",
        "claviger.toml:37: keys.user-keys.versions[1].version: is 1, as keys.user-keys.versions[0].version is already; write a number that was never used",
    ),
    (
        "version = 2\n",
        "version = \"two\"\n",
        "claviger.toml:32: keys.user-keys.versions[0].version: is a string; write a whole number",
    ),
    (
        "version = 2\n",
        "version = 4294967296\n",
        "claviger.toml:32: keys.user-keys.versions[0].version: is 4294967296; write a number from 1 to 4294967295",
    ),
    (
        "version = 2\n",
        "",
        "claviger.toml:31: keys.user-keys.versions[0].version: is missing; write version = 1, or the next number that was never used",
    ),
    (
        "state = \"active\"\nreplicas = [{ provider = \"hsm-a\"",
        "state = \"actve\"\nreplicas = [{ provider = \"hsm-a\"",
        "claviger.toml:33: keys.user-keys.versions[0].state: \"actve\" is not known; write \"active\", \"unwrap-only\" or \"disabled\"",
    ),
    (
        "state = \"active\"\nreplicas = [{ provider = \"hsm-a\"",
        "replicas = [{ provider = \"hsm-a\"",
        "claviger.toml:31: keys.user-keys.versions[0].state: is missing; write state = \"active\", \"unwrap-only\" or \"disabled\"",
    ),
    (
        "replicas = [{ provider = \"files\", locator = \"other.pem\" }]",
        "replicas = []",
        "claviger.toml:48: keys.other.versions[0].replicas: is empty; write at least one { provider = \"…\", locator = \"…\" }",
    ),
    (
        "replicas = [{ provider = \"files\", locator = \"other.pem\" }]\n",
        "",
        "claviger.toml:45: keys.other.versions[0].replicas: is missing; write replicas = [{ provider = \"…\", locator = \"…\" }]",
    ),
    (
        "replicas = [{ provider = \"files\", locator = \"other.pem\" }]",
        "replicas = [{ provider = \"fils\", locator = \"other.pem\" }]",
        "claviger.toml:48: keys.other.versions[0].replicas[0].provider: \"fils\" is no provider; did you mean \"files\"?",
    ),
    (
        "replicas = [{ provider = \"files\", locator = \"other.pem\" }]",
        "replicas = [{ provider = \"aws\", locator = \"other.pem\" }]",
        "claviger.toml:48: keys.other.versions[0].replicas[0].provider: \"aws\" is no provider; add [providers.aws]",
    ),
    (
        "replicas = [{ provider = \"files\", locator = \"other.pem\" }]",
        "replicas = [{ provider = \"files\" }]",
        "claviger.toml:48: keys.other.versions[0].replicas[0].locator: is missing; write where the key lives in its backend",
    ),
    (
        "replicas = [{ provider = \"files\", locator = \"other.pem\" }]",
        "replicas = [\n  { provider = \"files\", locator = \"other.pem\" },\n  { provider = \"files\", locator = \"old.pem\" },\n]",
        "claviger.toml:50: keys.other.versions[0].replicas[1]: is the same provider and locator as keys.user-keys.versions[1].replicas[0]; one private key belongs to one version: leave one of them out",
    ),
    (
        "replicas = [{ provider = \"files\", locator = \"other.pem\" }]",
        "replicas = [{ provider = \"files\", locator = \"other.pem\", weight = 2 }]",
        "claviger.toml:48: keys.other.versions[0].replicas[0].weight: is not a known field; known are provider, locator",
    ),
    (
        "public_key_sha256 = \"22",
        "public_key_sha256 = \"xy",
        "claviger.toml:35: keys.user-keys.versions[0].public_key_sha256: \"xy22222222222222222222222222222222222222222222222222222222222222\" is no SHA-256; write 64 hexadecimal digits, or leave the field out and run `claviger config pin`",
    ),
    (
        "public_key_sha256 = \"2222222222222222222222222222222222222222222222222222222222222222",
        "public_key_sha256 = \"1111111111111111111111111111111111111111111111111111111111111111",
        "claviger.toml:41: keys.user-keys.versions[1].public_key_sha256: is the same key as keys.user-keys.versions[0].public_key_sha256; a key has one name, else the limits of a grant could be passed by: leave one of them out",
    ),
    (
        "[keys.other]\n",
        "[keys.other]\ncertificate = \"other.crt\"\n",
        "claviger.toml:44: keys.other.certificate: is not a known field; known are algorithms, sign_algorithms, balance, versions",
    ),
    (
        "[[callers]]\nname = \"prometheus\"",
        "[callers]\nname = \"prometheus\"",
        "claviger.toml:60: this is not TOML: duplicate key",
    ),
    (
        "name = \"key-connector\"\n",
        "",
        "claviger.toml:50: callers[0].name: is missing; write name = \"…\"",
    ),
    (
        "name = \"key-connector\"",
        "name = \"Key Connector\"",
        "claviger.toml:51: callers[0].name: \"Key Connector\" is no name; write 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", a letter or digit first",
    ),
    (
        "name = \"local\"",
        "name = \"key-connector\"",
        "claviger.toml:57: callers[1].name: \"key-connector\" is the name at callers[0].name too; write another",
    ),
    (
        "match = { spiffe = \"spiffe://example.org/kc\" }\n",
        "",
        "claviger.toml:50: callers[0].match: is missing; write match = { spiffe = \"spiffe://…\" }, { dns = \"…\" }, { uid = … } or { issuer = \"…\", subject = \"…\" }",
    ),
    (
        "spiffe = \"spiffe://example.org/kc\"",
        "spiffe = \"https://example.org/kc\"",
        "claviger.toml:52: callers[0].match.spiffe: \"https://example.org/kc\" does not begin with \"spiffe://\"; write \"spiffe://example.org/name\"",
    ),
    (
        "spiffe = \"spiffe://example.org/kc\"",
        "spiffe = \"spiffe://example.org\"",
        "claviger.toml:52: callers[0].match.spiffe: \"spiffe://example.org\" names a trust domain and no workload in it; write \"spiffe://example.org/name\"",
    ),
    (
        "spiffe = \"spiffe://example.org/kc\"",
        "spiffe = \"spiffe://example.org/kc?x=1\"",
        "claviger.toml:52: callers[0].match.spiffe: \"spiffe://example.org/kc?x=1\" has a path segment that is empty, a dot segment, or not of letters, digits, \".\", \"-\" and \"_\"; write \"spiffe://example.org/name\"",
    ),
    (
        "spiffe = \"spiffe://example.org/kc\"",
        "cn = \"kc\"",
        "claviger.toml:52: callers[0].match.cn: is not a known field; known are spiffe, dns, uid, ca, issuer, subject, claims\nclaviger.toml:52: callers[0].match: has no identity; write exactly one of spiffe, dns and uid, or issuer with subject or claims; several identities are a list: [{ … }, { … }]",
    ),
    (
        "{ spiffe = \"spiffe://example.org/kc\" }",
        "{ spiffe = \"spiffe://example.org/kc\", dns = \"kc.example.org\" }",
        "claviger.toml:52: callers[0].match: has several identities; write exactly one of spiffe, dns and uid, or issuer with subject or claims; several identities are a list: [{ … }, { … }]",
    ),
    (
        "match = { spiffe = \"spiffe://example.org/kc\" }",
        "match = []",
        "claviger.toml:52: callers[0].match: is empty: no client would be this caller; write { spiffe = \"spiffe://…\" }",
    ),
    (
        "match = { spiffe = \"spiffe://example.org/kc\" }",
        "match = \"spiffe://example.org/kc\"",
        "claviger.toml:52: callers[0].match: is a string; write { spiffe = \"spiffe://…\" }, { dns = \"…\" }, { uid = … }, { issuer = \"…\", subject = \"…\" }, or a list of them",
    ),
    (
        "{ spiffe = \"spiffe://example.org/kc\" }",
        "{ dns = \"prometheus.example.org\" }",
        "claviger.toml:62: callers[2].match: is the same identity as callers[0].match; exactly one caller may match: leave one of them out",
    ),
    (
        "{ spiffe = \"spiffe://example.org/kc\" }",
        "{ dns = \"prometheus.example.org\", ca = \"clients\" }",
        "claviger.toml:62: callers[2].match: is the same identity as callers[0].match; exactly one caller may match: leave one of them out",
    ),
    (
        "{ spiffe = \"spiffe://example.org/kc\" }",
        "{ spiffe = \"spiffe://example.org/kc\", ca = \"client\" }",
        "claviger.toml:52: callers[0].match.ca: \"client\" is not in server.tls.client_ca; write \"clients\"",
    ),
    (
        "dns = \"prometheus.example.org\"",
        "dns = \"*.example.org\"",
        "claviger.toml:62: callers[2].match.dns: \"*.example.org\" has a wildcard, which names no client in particular; write a whole name such as \"kc.example.org\"",
    ),
    (
        "dns = \"prometheus.example.org\"",
        "dns = \"Prometheus.example.org\"",
        "claviger.toml:62: callers[2].match.dns: \"Prometheus.example.org\" has capital letters; certificates are compared in lower case; write a whole name such as \"kc.example.org\"",
    ),
    (
        "dns = \"prometheus.example.org\"",
        "dns = \"192.0.2.1\"",
        "claviger.toml:62: callers[2].match.dns: \"192.0.2.1\" is an address, which is no identity; write a whole name such as \"kc.example.org\"",
    ),
    (
        "uid = 1000",
        "uid = 0",
        "claviger.toml:58: callers[1].match[0].uid: is 0, which never matches; write the uid of a user of its own",
    ),
    (
        "uid = 1000",
        "uid = 65534",
        "claviger.toml:58: callers[1].match[0].uid: is 65534, which never matches; write the uid of a user of its own",
    ),
    (
        "uid = 1000",
        "uid = \"app\"",
        "claviger.toml:58: callers[1].match[0].uid: is a string; write a whole number",
    ),
    (
        "{ uid = 1000 }",
        "{ uid = 1000, ca = \"clients\" }",
        "claviger.toml:58: callers[1].match[0].ca: belongs to a certificate; leave it out beside uid",
    ),
    (
        ", \"unix:claviger.sock\"]",
        "]",
        "claviger.toml:58: callers[1].match[0]: has a uid, which only a Unix socket shows; add \"unix:…\" to server.listen, or match by certificate",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-key\"], operations = [\"unwrap\", \"read\"]",
        "claviger.toml:53: callers[0].grants[0].keys[0]: \"user-key\" is no key; did you mean \"user-keys\"?",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"nothing-alike\"], operations = [\"unwrap\", \"read\"]",
        "claviger.toml:53: callers[0].grants[0].keys[0]: \"nothing-alike\" is no key; add [keys.nothing-alike], or leave it out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [], operations = [\"unwrap\"]",
        "claviger.toml:53: callers[0].grants[0].keys: is empty; write at least one key, or leave the grant out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"decrypt\"]",
        "claviger.toml:53: callers[0].grants[0].operations[0]: \"decrypt\" is not known; write \"wrap\", \"unwrap\", \"rewrap\", \"sign\", \"verify\" or \"read\"",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"]",
        "claviger.toml:53: callers[0].grants[0].to: is missing; \"rewrap\" has no target by itself: write to = [\"…\"] with names from [keys], to_public_keys = [\"…\"] with the SHA-256 of public keys, or to_approved = { issuer = \"…\", claims = { … } } with whose approval counts",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to = []",
        "claviger.toml:53: callers[0].grants[0].to: is empty; write at least one key, or leave the grant out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to = \"other\"",
        "claviger.toml:53: callers[0].grants[0].to: is a string; write a list of strings",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to = [\"othr\"]",
        "claviger.toml:53: callers[0].grants[0].to[0]: \"othr\" is no key; did you mean \"other\"?",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to = [\"other\", \"other\"]",
        "claviger.toml:53: callers[0].grants[0].to[1]: is listed a second time; leave it out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"], to = [\"other\"]",
        "claviger.toml:53: callers[0].grants[0].to: is for the operation \"rewrap\"; add it to operations, or leave this out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"wrap\"], to_public_keys = \"any\"",
        "claviger.toml:53: callers[0].grants[0].to_public_keys: is for the operation \"rewrap\"; add it to operations, or leave this out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to_public_keys = \"all\"",
        "claviger.toml:53: callers[0].grants[0].to_public_keys: is a string; write a list of SHA-256, or \"any\": then a caller with this grant can read the key material",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to_public_keys = []",
        "claviger.toml:53: callers[0].grants[0].to_public_keys: is empty; write at least one public key, or leave the grant out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to_public_keys = true",
        "claviger.toml:53: callers[0].grants[0].to_public_keys: is true or false; write a list of strings",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to_public_keys = [\"22\"]",
        "claviger.toml:53: callers[0].grants[0].to_public_keys[0]: \"22\" is no SHA-256; write 64 hexadecimal digits, of the public key's SubjectPublicKeyInfo (DER)",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"], wrapped_sha256 = [\"00\"]",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha256[0]: \"00\" is no SHA-256; write 64 hexadecimal digits, as `claviger wrapped-sha256` prints them",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"], wrapped_sha256 = []",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha256: is empty; write at least one wrapped value, or leave the grant out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"wrap\", \"read\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha256: is for the operations \"unwrap\" and \"rewrap\"; add one of them to operations, or leave this out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"] }, { keys = [\"other\", \"user-keys\"], operations = [\"unwrap\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[1].wrapped_sha256: restricts nothing: callers[0].grants[0] grants \"unwrap\" with \"user-keys\" for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"] }, { keys = [\"user-keys\"], operations = [\"rewrap\"], to_public_keys = \"any\"",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha256: restricts nothing: callers[0].grants[1] grants \"rewrap\" with \"user-keys\" to any public key, which is as good as \"unwrap\", for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to = [\"other\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"] }, { keys = [\"user-keys\"], operations = [\"rewrap\"], to_public_keys = \"any\"",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha256: restricts nothing: callers[0].grants[1] grants \"rewrap\" with \"user-keys\" to any public key, which is as good as \"unwrap\", for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to = [\"user-keys\", \"other\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"] }, { keys = [\"user-keys\"], operations = [\"rewrap\"], to = [\"other\"]",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha256: restricts nothing: callers[0].grants[1] grants \"rewrap\" with \"user-keys\" to \"other\" for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to_public_keys = [\"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\"] }, { keys = [\"user-keys\"], operations = [\"unwrap\", \"rewrap\"], to_public_keys = [\"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[1].wrapped_sha256: restricts nothing: callers[0].grants[0] grants \"rewrap\" with \"user-keys\" to the public key cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"] }, { keys = [\"user-keys\"], operations = [\"rewrap\"], to = [\"other\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[1].wrapped_sha256: restricts nothing: callers[0].grants[0] grants \"unwrap\" with \"user-keys\" for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrap\"], to = [\"other\"] }, { keys = [\"other\"], operations = [\"unwrap\"] }, { keys = [\"user-keys\"], operations = [\"unwrap\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[2].wrapped_sha256: restricts nothing: callers[0].grants[0] grants \"rewrap\" with \"user-keys\" to \"other\", and callers[0].grants[1] grants \"unwrap\" with \"other\" for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"other\"], operations = [\"rewrap\"], to_public_keys = [\"2222222222222222222222222222222222222222222222222222222222222222\"] }, { keys = [\"user-keys\"], operations = [\"unwrap\"] }, { keys = [\"other\"], operations = [\"unwrap\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[2].wrapped_sha256: restricts nothing: callers[0].grants[0] grants \"rewrap\" with \"other\" to the public key 2222222222222222222222222222222222222222222222222222222222222222, and callers[0].grants[1] grants \"unwrap\" with \"user-keys\" for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"other\"], operations = [\"rewrap\"], to_public_keys = [\"2222222222222222222222222222222222222222222222222222222222222222\"] }, { keys = [\"other\"], operations = [\"rewrap\"], to = [\"user-keys\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[1].wrapped_sha256: restricts nothing: callers[0].grants[0] grants \"rewrap\" with \"other\" to the public key 2222222222222222222222222222222222222222222222222222222222222222 for every value; leave one of them out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"], wrapped_sha = []",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha: is not a known field; did you mean \"wrapped_sha256\"?",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"unwrap\"]",
        "claviger.toml:53: callers[0].grants[0].operations[1]: is listed a second time; leave it out",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"]",
        "claviger.toml:53: callers[0].grants[0].operations: is missing; write operations = [\"unwrap\", \"read\"]",
    ),
    (
        "rate = \"50/s\"",
        "rate = \"50\"",
        "claviger.toml:54: callers[0].limits.rate: \"50\" is no rate; write \"50/s\", \"600/m\", \"100/h\", \"1000/d\" or \"off\"",
    ),
    (
        "rate = \"50/s\"",
        "rate = \"0/s\"",
        "claviger.toml:54: callers[0].limits.rate: \"0/s\" is no rate; write \"50/s\", \"600/m\", \"100/h\", \"1000/d\" or \"off\"",
    ),
    (
        "rate = \"50/s\"",
        "rates = \"50/s\"",
        "claviger.toml:54: callers[0].limits.rates: is not a known field; did you mean \"rate\"?",
    ),
    (
        "failed_unwraps = \"off\"",
        "failed_unwraps = 100",
        "claviger.toml:54: callers[0].limits.failed_unwraps: is a number; write \"50/s\", \"600/m\", \"100/h\", \"1000/d\" or \"off\"",
    ),
    // What is wrong in one place is not reported in another that depends on it.
    (
        "[server.tls]\ncertificate = \"server.crt\"\nprivate_key = \"server.key\"\nclient_ca = { clients = \"clients.pem\" }\n",
        "tls = 5\n",
        "claviger.toml:6: server.tls: is a number; write a table",
    ),
    (
        "algorithms = [\"RSA-OAEP-256\"]",
        "algorithms = [\"RSA-OAEP-1\"]",
        "claviger.toml:39: keys.user-keys.versions[1].algorithms[0]: \"RSA-OAEP-1\" is not known; allowed: RSA-OAEP, RSA-OAEP-256, RSA-OAEP-384, RSA-OAEP-512, RSA1_5",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"rewrite\"], to = [\"other\"]",
        "claviger.toml:53: callers[0].grants[0].operations[0]: \"rewrite\" is not known; write \"wrap\", \"unwrap\", \"rewrap\", \"sign\", \"verify\" or \"read\"",
    ),
    (
        "keys = [\"user-keys\"], operations = [\"unwrap\", \"read\"]",
        "keys = [\"user-keys\"], operations = [\"unwrap\"], wrapped_sha256 = 5 }, { keys = [\"user-keys\"], operations = [\"unwrap\"], wrapped_sha256 = [\"abababababababababababababababababababababababababababababababab\"]",
        "claviger.toml:53: callers[0].grants[0].wrapped_sha256: is a number; write a list of strings",
    ),
];
