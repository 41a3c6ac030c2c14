//! The real programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use p2pdb::core::probe::{ProbeKind, ProbeOutcome};

use crate::impostors::Impostor;
use crate::rig::{Program, ask, free_port, installed, installed_for_root};

/// A service answers, stays silent while it is frozen, answers again, and is gone when it is stopped.
fn lives_and_dies(question: &ProbeKind, mut program: Program) {
    let tcp = !matches!(question, ProbeKind::Dns { .. });
    program.freeze();
    match ask(question, 300) {
        ProbeOutcome::Refused(why) if tcp => {
            assert_eq!(why, "the connection is accepted, and no answer comes within 300 ms");
        }
        ProbeOutcome::Failed(why) if !tcp => assert_eq!(why, "no answer within 300 ms"),
        other => panic!("a frozen service: {other:?}"),
    }
    program.thaw();
    answers(question);
    program.stop();
    assert_eq!(ask(question, 2000), ProbeOutcome::Refused("connection refused".to_owned()));
}

fn answers(question: &ProbeKind) {
    let outcome = ask(question, 10_000);
    assert!(matches!(outcome, ProbeOutcome::Answered { .. }), "{outcome:?}");
}

fn refused(question: &ProbeKind) -> String {
    match ask(question, 10_000) {
        ProbeOutcome::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn postfix() {
    let Some(postfix) = installed_for_root("postfix", "postfix") else { return };
    let port = free_port();
    let question = ProbeKind::Smtp { port };
    let program = Program::start(&question, |dir| {
        let at = dir.display();
        for folder in ["queue", "data", "etc"] {
            fs::create_dir(dir.join(folder)).unwrap();
        }
        open_to_all(dir);
        let status = Command::new("chown").args(["postfix", &format!("{at}/data")]).status().unwrap();
        assert!(status.success());
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {at}/queue\ndata_directory = {at}/data\n\
             myhostname = mail.example.org\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
             maillog_file_prefixes = /tmp\nmaillog_file = {at}/log\nalias_maps =\n"
        );
        write(dir, "etc/main.cf", &main);
        let master = format!(
            "127.0.0.1:{port} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\n\
             rewrite unix - - n - - trivial-rewrite\nanvil unix - - n - 1 anvil\n\
             cleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\npickup unix n - n 60 1 pickup\n\
             proxymap unix - - n - - proxymap\ntlsmgr unix - - n 1000? 1 tlsmgr\n"
        );
        let etc = write(dir, "etc/master.cf", &master).replace("/master.cf", "");
        let mut command = Command::new(postfix);
        command.args(["-c", &etc, "start-fg"]);
        command
    });
    lives_and_dies(&question, program);
}

#[test]
fn sshd() {
    let Some(sshd) = installed("sshd", "sshd") else { return };
    let port = free_port();
    let question = ProbeKind::Ssh { port };
    let program = Program::start(&question, |dir| {
        let key = dir.join("key").to_str().unwrap().to_owned();
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key]).status().unwrap();
        assert!(made.success());
        // Where it shuts itself in before a client has logged in.
        let _ = fs::create_dir("/run/sshd");
        let config =
            write(dir, "sshd_config", &format!("ListenAddress 127.0.0.1:{port}\nHostKey {key}\nPidFile none\n"));
        let mut command = Command::new(sshd);
        command.args(["-D", "-e", "-f", &config]);
        command
    });
    lives_and_dies(&question, program);
}

#[test]
fn vsftpd() {
    let Some(vsftpd) = installed_for_root("vsftpd", "vsftpd") else { return };
    let port = free_port();
    let question = ProbeKind::Ftp { port };
    let program = Program::start(&question, |dir| {
        fs::create_dir(dir.join("empty")).unwrap();
        let config = format!(
            "listen=YES\nlisten_ipv6=NO\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\n\
             anonymous_enable=YES\nsecure_chroot_dir={}/empty\nseccomp_sandbox=NO\n",
            dir.display()
        );
        let config = write(dir, "vsftpd.conf", &config);
        let mut command = Command::new(vsftpd);
        command.arg(config);
        command
    });
    lives_and_dies(&question, program);
}

#[test]
fn squid() {
    let Some(squid) = installed_for_root("squid", "squid") else { return };
    let origin = Impostor::says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    let port = free_port();
    let question = ProbeKind::Proxy { port, url: format!("http://127.0.0.1:{}/", origin.port) };
    let program = Program::start(&question, |dir| {
        open_to_all(dir);
        let status = Command::new("chown").args(["proxy", dir.to_str().unwrap()]).status().unwrap();
        assert!(status.success());
        let config = format!(
            "http_port 127.0.0.1:{port}\nhttp_access allow all\ncache deny all\npid_filename {0}/pid\n\
             cache_log {0}/cache.log\naccess_log none\ncache_store_log none\nvisible_hostname proxy.example.org\n\
             coredump_dir {0}\nshutdown_lifetime 0 seconds\npinger_enable off\ndns_nameservers 127.0.0.1\n",
            dir.display()
        );
        let config = write(dir, "squid.conf", &config);
        let mut command = Command::new(squid);
        command.args(["-N", "-n", &format!("p2pdb{port}"), "-f", &config]);
        command
    });
    let nobody = ProbeKind::Proxy { port, url: format!("http://127.0.0.1:{}/", free_port()) };
    assert_eq!(refused(&nobody), "its status is 503");
    lives_and_dies(&question, program);
}

#[test]
fn nginx() {
    let Some(nginx) = installed("nginx", "nginx") else { return };
    let (port, tls_port) = (free_port(), free_port());
    let page = |path: &str, status: Option<u16>| ProbeKind::Http {
        port,
        tls: false,
        host: Some("www.example.org".to_owned()),
        path: path.to_owned(),
        status,
    };
    let question = page("/", None);
    let program = Program::start(&question, |dir| {
        let key = rcgen::generate_simple_self_signed(["www.example.org".to_owned()]).unwrap();
        write(dir, "cert.pem", &key.cert.pem());
        write(dir, "key.pem", &key.signing_key.serialize_pem());
        let config = format!(
            "worker_processes 1;\ndaemon off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{}}\nhttp {{\n\
             access_log off;\nclient_body_temp_path {0}/t1;\nproxy_temp_path {0}/t2;\nfastcgi_temp_path {0}/t3;\n\
             uwsgi_temp_path {0}/t4;\nscgi_temp_path {0}/t5;\n\
             server {{ listen 127.0.0.1:{port} default_server; return 421; }}\n\
             server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl; server_name www.example.org;\n\
             ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem; ssl_protocols TLSv1.2;\n\
             location = / {{ return 200 ok; }}\nlocation = /empty {{ return 204; }}\nlocation / {{ return 500; }} }} }}\n",
            dir.display()
        );
        let config = write(dir, "nginx.conf", &config);
        let mut command = Command::new(nginx);
        command.args(["-e", "stderr", "-c", &config]);
        command
    });
    assert_eq!(refused(&page("/broken", None)), "its status is 500");
    assert_eq!(refused(&page("/", Some(204))), "its status is 200, not 204");
    answers(&page("/empty", Some(204)));
    answers(&page("/broken", Some(500)));
    let bare = ProbeKind::Http { port, tls: false, host: None, path: "/".to_owned(), status: None };
    assert_eq!(refused(&bare), "its status is 421");
    let secure = |port| ProbeKind::Http { port, tls: true, host: None, path: "/".to_owned(), status: Some(200) };
    answers(&secure(tls_port));
    assert!(refused(&secure(port)).starts_with("no TLS: "));
    lives_and_dies(&question, program);
}

#[test]
fn dnsmasq() {
    let Some(dnsmasq) = installed_for_root("dnsmasq", "dnsmasq") else { return };
    let port = free_port();
    let name = |name: &str| ProbeKind::Dns { port, name: name.to_owned() };
    let question = name("www.example.org");
    let program = Program::start(&question, |dir| {
        let mut command = Command::new(dnsmasq);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
        command.args(["--bind-interfaces", "--listen-address=127.0.0.1", "--address=/www.example.org/192.0.2.1"]);
        command.arg(format!("--port={port}")).arg(format!("--pid-file={}/pid", dir.display()));
        command
    });
    // It refuses to look further, which is an answer.
    answers(&name("unknown.example.net"));
    lives_and_dies(&question, program);
}

/// Lets the user that a program runs as into its folder.
fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
