//! Real services from Debian's packages, each with the smallest configuration that it takes, in a namespace: the truth of service
//! detection.
//!
//! What is true is what was started: the protocol, the product, and the version that the package manager knows.
//!
//! Invariant: everything that a service writes is below the lab's directory (`/run/sshd` apart, which sshd insists on), and nothing that
//! serves on the machine itself is started, stopped or configured.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::programs::Programs;
use super::{Namespace, Proc, Run, find_program, wait_until};

/// How long a service may take to start on a machine that is busy. Only waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// HTTP, plain and in TLS.
    Nginx,
    /// SSH.
    Openssh,
    /// SMTP.
    Exim,
    /// DNS.
    Bind,
    /// DNS, another one.
    Dnsmasq,
    /// Redis.
    Redis,
    /// MQTT, plain and in TLS.
    Mosquitto,
    /// FTP.
    Vsftpd,
    /// SNMP.
    Snmpd,
    /// SMB.
    Samba,
    /// IMAP and POP3, plain and in TLS.
    Dovecot,
    /// LDAP.
    Slapd,
    /// MySQL's protocol.
    Mariadb,
    /// PostgreSQL.
    Postgres,
}

/// A port of a service, and what it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Face {
    port: u16,
    udp: bool,
    name: &'static str,
    product: &'static str,
    tls: bool,
    /// Whether the protocol tells the version to strangers.
    versioned: bool,
}

const fn face(port: u16, name: &'static str, product: &'static str, versioned: bool) -> Face {
    Face { port, udp: false, name, product, tls: false, versioned }
}

impl Face {
    const fn tls(self) -> Self {
        Self { tls: true, ..self }
    }

    const fn udp(self) -> Self {
        Self { udp: true, ..self }
    }
}

impl Daemon {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Nginx,
        Self::Openssh,
        Self::Exim,
        Self::Bind,
        Self::Dnsmasq,
        Self::Redis,
        Self::Mosquitto,
        Self::Vsftpd,
        Self::Snmpd,
        Self::Samba,
        Self::Dovecot,
        Self::Slapd,
        Self::Mariadb,
        Self::Postgres,
    ];

    /// The package whose version it tells, and the program (by name, or by where Debian puts it).
    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::Nginx => ("nginx", "nginx"),
            Self::Openssh => ("openssh-server", "sshd"),
            Self::Exim => ("exim4-daemon-light", "exim4"),
            Self::Bind => ("bind9", "named"),
            Self::Dnsmasq => ("dnsmasq-base", "dnsmasq"),
            Self::Redis => ("redis-server", "redis-server"),
            Self::Mosquitto => ("mosquitto", "mosquitto"),
            Self::Vsftpd => ("vsftpd", "vsftpd"),
            Self::Snmpd => ("snmpd", "snmpd"),
            Self::Samba => ("samba", "smbd"),
            Self::Dovecot => ("dovecot-core", "dovecot"),
            Self::Slapd => ("slapd", "slapd"),
            Self::Mariadb => ("mariadb-server-core", "mariadbd"),
            Self::Postgres => ("postgresql", "postgres"),
        }
    }

    fn faces(self) -> &'static [Face] {
        match self {
            Self::Nginx => const { &[face(80, "http", "nginx", true), face(443, "http", "nginx", true).tls()] },
            Self::Openssh => const { &[face(22, "ssh", "OpenSSH", true)] },
            Self::Exim => const { &[face(25, "smtp", "Exim", true)] },
            Self::Bind => const { &[face(53, "domain", "BIND", true), face(53, "domain", "BIND", true).udp()] },
            Self::Dnsmasq => const { &[face(53, "domain", "dnsmasq", true), face(53, "domain", "dnsmasq", true).udp()] },
            Self::Redis => const { &[face(6379, "redis", "Redis", true)] },
            Self::Mosquitto => const { &[face(1883, "mqtt", "mosquitto", true), face(8883, "mqtt", "mosquitto", true).tls()] },
            Self::Vsftpd => const { &[face(21, "ftp", "vsftpd", true)] },
            Self::Snmpd => const { &[face(161, "snmp", "net-snmp", false).udp()] },
            Self::Samba => const { &[face(445, "microsoft-ds", "Samba", false)] },
            Self::Dovecot => {
                const {
                    &[
                        face(143, "imap", "Dovecot imapd", false),
                        face(993, "imap", "Dovecot imapd", false).tls(),
                        face(110, "pop3", "Dovecot pop3d", false),
                        face(995, "pop3", "Dovecot pop3d", false).tls(),
                    ]
                }
            }
            Self::Slapd => const { &[face(389, "ldap", "OpenLDAP", false)] },
            Self::Mariadb => const { &[face(3306, "mysql", "MariaDB", true)] },
            Self::Postgres => const { &[face(5432, "postgresql", "PostgreSQL", false)] },
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.package().1)
    }
}

/// What is true of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whose it is.
    pub daemon: Daemon,
    /// Where it is.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// UDP, not TCP.
    pub udp: bool,
    /// The protocol, by its IANA name.
    pub name: &'static str,
    /// The product.
    pub product: &'static str,
    /// The version, where the protocol tells it to strangers.
    pub version: Option<String>,
    /// Whether it is spoken inside TLS.
    pub tls: bool,
}

/// Says which packages of real services are missing; `None` when none is.
pub fn missing() -> Option<String> {
    let lacks: Vec<&str> = Daemon::ALL.iter().filter(|daemon| program(**daemon).is_none()).map(|daemon| daemon.package().0).collect();
    (!lacks.is_empty()).then(|| format!("the Debian packages {}: `scripts/setup test` installs them", lacks.join(", ")))
}

fn program(daemon: Daemon) -> Option<PathBuf> {
    if daemon != Daemon::Postgres {
        return find_program(daemon.package().1);
    }
    // One directory for each major version; the newest is taken.
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let programs = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let file = entry.path().join("bin/postgres");
        file.is_file().then_some((version, file))
    });
    programs.max().map(|(_, file)| file)
}

/// The upstream part of a package's version: `1:9.2p1-2+deb12u10` is 9.2p1.
fn version(package: &str) -> Result<String> {
    let out = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output().context("run dpkg-query")?;
    ensure!(out.status.success(), "dpkg-query knows no package {package}");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let upstream = text.split_once(':').map_or(text.as_str(), |(_, rest)| rest);
    let upstream = upstream.rsplit_once('-').map_or(upstream, |(upstream, _)| upstream);
    Ok(upstream.split(['+', '~']).next().unwrap_or(upstream).to_owned())
}

/// Running services. Dropping it ends them.
#[derive(Debug)]
pub struct Services {
    known: Vec<Known>,
    _procs: Vec<Proc>,
}

impl Services {
    /// Starts daemons on an address that the namespace has, and waits until each takes connections.
    ///
    /// # Errors
    /// When a package is missing, or a service does not start.
    pub fn start(namespace: &Namespace, address: IpAddr, daemons: &[Daemon]) -> Result<Self> {
        let mut started = Vec::new();
        for daemon in daemons {
            let program = program(*daemon).with_context(|| format!("no program {daemon}: `scripts/setup test` installs it"))?;
            let place = Place::new(namespace, address, *daemon, program)?;
            let run = place.run().with_context(|| format!("configure {daemon}"))?;
            started.push((*daemon, namespace.spawn(&run.label(daemon.to_string()))?));
        }
        let mut known = Vec::new();
        for (daemon, proc) in &mut started {
            wait_ready(namespace, address, *daemon, proc)?;
            let version = version(daemon.package().0)?;
            known.extend(daemon.faces().iter().map(|face| Known {
                daemon: *daemon,
                address,
                port: face.port,
                udp: face.udp,
                name: face.name,
                product: face.product,
                version: face.versioned.then(|| version.clone()),
                tls: face.tls,
            }));
        }
        Ok(Self { known, _procs: started.into_iter().map(|(_, proc)| proc).collect() })
    }

    /// What is true of every port that they serve on.
    pub fn known(&self) -> &[Known] {
        &self.known
    }
}

fn wait_ready(namespace: &Namespace, address: IpAddr, daemon: Daemon, proc: &mut Proc) -> Result<()> {
    if daemon == Daemon::Snmpd {
        proc.wait_for_line("NET-SNMP version", PATIENCE)?;
    }
    for face in daemon.faces().iter().filter(|face| !face.udp) {
        let to = SocketAddr::new(address, face.port);
        wait_until(&format!("connection to {daemon} at {to}"), PATIENCE, || {
            ensure!(proc.running(), "{daemon} has ended: {}{}", proc.stdout(), proc.stderr());
            Ok(namespace.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?.is_ok().then_some(()))
        })?;
    }
    Ok(())
}

/// Starts listeners that accept and never say a word.
///
/// # Errors
/// When the program does not start.
pub fn silent(namespace: &Namespace, ports: impl IntoIterator<Item = u16>) -> Result<Proc> {
    let run = Run::new(Programs::lab_listen()?).args(ports.into_iter().map(|port| port.to_string())).label("silent");
    let mut proc = namespace.spawn(&run)?;
    proc.wait_for_line("ready", PATIENCE)?;
    Ok(proc)
}

/// Where a daemon lives, and how it is called.
struct Place<'a> {
    namespace: &'a Namespace,
    address: IpAddr,
    daemon: Daemon,
    program: PathBuf,
    dir: PathBuf,
}

impl<'a> Place<'a> {
    fn new(namespace: &'a Namespace, address: IpAddr, daemon: Daemon, program: PathBuf) -> Result<Self> {
        let dir = namespace.lab().make_dir(&daemon.to_string())?;
        Ok(Self { namespace, address, daemon, program, dir })
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.dir.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// A certificate of our own making, and its key.
    fn certificate(&self) -> Result<(PathBuf, PathBuf)> {
        let made = rcgen::generate_simple_self_signed(["attic.example".to_owned()]).context("make a certificate")?;
        Ok((self.write("cert.pem", &made.cert.pem())?, self.write("key.pem", &made.signing_key.serialize_pem())?))
    }

    fn run(&self) -> Result<Run> {
        let (dir, address) = (self.dir.display(), self.address);
        let run = Run::new(&self.program).cwd(&self.dir);
        Ok(match self.daemon {
            Daemon::Nginx => {
                let (cert, key) = self.certificate()?;
                let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .iter()
                    .map(|what| format!("{what}_temp_path {dir}/{what};"))
                    .collect();
                let config = format!(
                    "daemon off; pid {dir}/pid; error_log stderr; user root; events {{}}\n\
                     http {{ access_log off; {temp} default_type text/html;\n\
                     server {{ listen {address}:80; location / {{ return 200 '<title>Attic</title>'; }} }}\n\
                     server {{ listen {address}:443 ssl; ssl_certificate {}; ssl_certificate_key {};\n\
                     location / {{ return 200 '<title>Attic</title>'; }} }} }}\n",
                    cert.display(),
                    key.display()
                );
                run.arg("-c").arg(self.write("nginx.conf", &config)?)
            }
            Daemon::Openssh => {
                std::fs::create_dir_all("/run/sshd").context("make /run/sshd, which sshd insists on")?;
                let key = self.dir.join("key");
                tool(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
                let listen = format!("ListenAddress={address}");
                run.args(["-D", "-e", "-f", "/dev/null", "-p", "22", "-o", &listen, "-o", "PidFile=none", "-h"]).arg(key)
            }
            Daemon::Exim => {
                let config = format!(
                    "primary_hostname = attic.example\nspool_directory = {dir}\nlog_file_path = {dir}/%slog\npid_file_path = {dir}/pid\n\
                     local_interfaces = {address}\ndaemon_smtp_ports = 25\nexim_user = root\nacl_smtp_rcpt = refuse\nbegin acl\nrefuse:\n  deny\n"
                );
                run.arg("-C").arg(self.write("exim.conf", &config)?).args(["-bdf", "-q1d"])
            }
            Daemon::Bind => {
                let config = format!(
                    "options {{ directory \"{dir}\"; pid-file none; session-keyfile \"{dir}/session.key\"; recursion no; \
                     dnssec-validation no; listen-on port 53 {{ {address}; }}; listen-on-v6 {{ none; }}; }};\ncontrols {{ }};\n"
                );
                run.args(["-g", "-c"]).arg(self.write("named.conf", &config)?)
            }
            Daemon::Dnsmasq => {
                let listen = format!("--listen-address={address}");
                run.args(["-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "-u", "root", "--bind-interfaces", &listen])
            }
            Daemon::Redis => {
                let bind = address.to_string();
                run.args(["--port", "6379", "--bind", &bind, "--protected-mode", "no", "--save", "", "--dir"]).arg(&self.dir)
            }
            Daemon::Mosquitto => {
                let (cert, key) = self.certificate()?;
                let config = format!(
                    "user root\nallow_anonymous true\nlistener 1883 {address}\nlistener 8883 {address}\ncertfile {}\nkeyfile {}\n",
                    cert.display(),
                    key.display()
                );
                run.arg("-c").arg(self.write("mosquitto.conf", &config)?)
            }
            Daemon::Vsftpd => {
                let config = format!(
                    "listen=YES\nlisten_address={address}\nbackground=NO\nanonymous_enable=YES\nlocal_enable=NO\nsecure_chroot_dir={dir}\n\
                     seccomp_sandbox=NO\n"
                );
                run.arg(self.write("vsftpd.conf", &config)?)
            }
            Daemon::Snmpd => {
                let config = self.write("snmpd.conf", &format!("rocommunity public\nagentAddress udp:{address}:161\n"))?;
                run.args(["-f", "-Lo", "-C", "-c"]).arg(config).arg("-p").arg(self.dir.join("pid"))
            }
            Daemon::Samba => {
                let places: String =
                    ["private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir"]
                        .iter()
                        .map(|what| format!("{what} = {dir}\n"))
                        .collect();
                let config = format!(
                    "[global]\nserver role = standalone\n{places}log file = {dir}/log.%m\nsmb ports = 445\ndisable netbios = yes\n\
                     load printers = no\ninterfaces = {address}/32\nbind interfaces only = yes\n"
                );
                run.args(["-F", "--no-process-group", "--debug-stdout", "-s"]).arg(self.write("smb.conf", &config)?)
            }
            Daemon::Dovecot => {
                let (cert, key) = self.certificate()?;
                let config = format!(
                    "protocols = imap pop3\nlisten = {address}\nbase_dir = {dir}/run\nstate_dir = {dir}/state\nlog_path = /dev/stderr\n\
                     ssl = yes\nssl_cert = <{}\nssl_key = <{}\npassdb {{\n  driver = static\n  args = nopassword=y\n}}\n\
                     userdb {{\n  driver = static\n  args = uid=nobody gid=nogroup home=/nonexistent\n}}\n",
                    cert.display(),
                    key.display()
                );
                run.arg("-F").arg("-c").arg(self.write("dovecot.conf", &config)?)
            }
            Daemon::Slapd => {
                let config = format!(
                    "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\ndatabase mdb\n\
                     suffix \"dc=attic,dc=example\"\ndirectory {dir}\nrootdn \"cn=admin,dc=attic,dc=example\"\n"
                );
                run.args(["-d", "0", "-f"]).arg(self.write("slapd.conf", &config)?).arg("-h").arg(format!("ldap://{address}:389"))
            }
            Daemon::Mariadb => run
                .args(["--no-defaults", "--user=root", "--skip-grant-tables", "--skip-networking=0", "--port=3306"])
                .args(["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M"])
                .arg(format!("--bind-address={address}"))
                .arg(format!("--datadir={dir}/data"))
                .arg(format!("--socket={dir}/socket"))
                .arg(format!("--pid-file={dir}/pid"))
                .cwd(self.make("data")?),
            Daemon::Postgres => return self.postgres(),
        })
    }

    fn make(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }

    /// It refuses to run as root.
    fn postgres(&self) -> Result<Run> {
        const AS: [&str; 4] = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
        let bin = self.program.parent().unwrap_or(Path::new("/"));
        tool(Command::new("chown").arg("postgres:").arg(&self.dir))?;
        let data = self.dir.join("data");
        let init = Run::new(bin.join("initdb")).args(["-A", "trust", "-N", "-D"]).arg(&data).cwd(&self.dir).under(AS);
        self.namespace.run(&init, PATIENCE)?.ok().context("initdb")?;
        let address = self.address.to_string();
        Ok(Run::new(&self.program).arg("-D").arg(data).args(["-h", &address, "-p", "5432", "-k"]).arg(&self.dir).cwd(&self.dir).under(AS))
    }
}

fn tool(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
