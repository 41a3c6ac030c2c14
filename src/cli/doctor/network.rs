//! What the network of this host may do to service addresses, and to the guests that have them.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the kernel shows interfaces.
pub const INTERFACES: &str = "/sys/class/net";
/// Where it shows what is set for them.
pub const SETTINGS: &str = "/proc/sys/net";

/// Whether an interface loses addresses together with one of the same network that came before them.
pub fn loses_addresses(settings: &Path, interface: &str) -> bool {
    let is_off = |name: &str| is(&settings.join("ipv4/conf").join(name).join("promote_secondaries"), "0");
    is_off("all") && is_off(interface)
}

/// Whether the firewall of this host drops what guests send and get through a bridge.
pub fn firewall_drops(bridge: &str) -> bool {
    let sees = is(&Path::new(SETTINGS).join("bridge/bridge-nf-call-iptables"), "1");
    if !sees || !Path::new(INTERFACES).join(bridge).join("bridge").exists() {
        return false;
    }
    let listed = Command::new("iptables").arg("-S").output();
    listed.is_ok_and(|output| drops(&String::from_utf8_lossy(&output.stdout), bridge))
}

/// What `iptables -S` printed, looked through for the policy of FORWARD and the usual exceptions from it, there and in the chains that it
/// leads to.
fn drops(rules: &str, bridge: &str) -> bool {
    let from = format!(" -i {bridge} ");
    let (mut chains, mut at) = (vec!["FORWARD"], 0);
    while let Some(chain) = chains.get(at) {
        let start = format!("-A {chain} ");
        at += 1;
        for rule in rules.lines().filter(|rule| rule.starts_with(&start)) {
            let is_for_all = rule[start.len()..].starts_with("-j ");
            let is_for_bridges = rule.contains("--physdev-is-bridged") || rule.contains(&from);
            if rule.contains("! -") || !(is_for_all || is_for_bridges) {
                continue;
            }
            if rule.ends_with(" -j ACCEPT") {
                return false;
            }
            if let Some((_, next)) = rule.rsplit_once(" -j ")
                && !chains.contains(&next)
            {
                chains.push(next);
            }
        }
    }
    rules.lines().any(|rule| rule == "-P FORWARD DROP")
}

/// The gates of virtual machines at a bridge that are open.
pub fn open_gates(interfaces: &Path, bridge: &str) -> Vec<String> {
    let ports = fs::read_dir(interfaces.join(bridge).join("brif")).into_iter().flatten().flatten();
    let gates = ports.map(|port| port.file_name().to_string_lossy().into_owned()).filter(|name| {
        let flags = fs::read_to_string(interfaces.join(name).join("flags")).unwrap_or_default();
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or_default();
        // The lowest one is IFF_UP.
        name.starts_with("p2pdb") && flags & 1 == 1
    });
    gates.collect()
}

fn is(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn addresses_go_with_an_earlier_one_unless_either_setting_keeps_them() {
        for (all, own, loses) in [("0\n", "0\n", true), ("1\n", "0\n", false), ("0\n", "1\n", false)] {
            let folder = tempfile::tempdir().unwrap();
            write(&folder.path().join("ipv4/conf/all/promote_secondaries"), all);
            write(&folder.path().join("ipv4/conf/br0/promote_secondaries"), own);
            assert_eq!(loses_addresses(folder.path(), "br0"), loses);
            assert!(!loses_addresses(folder.path(), "nowhere0"));
        }
    }

    #[test]
    fn a_firewall_that_forwards_nothing_drops_what_crosses_a_bridge_unless_that_is_let_pass() {
        assert!(drops("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", "br0"));
        assert!(drops("-P FORWARD DROP\n-A FORWARD -i br01 -j ACCEPT\n", "br0"));
        assert!(!drops("-P FORWARD ACCEPT\n", "br0"));
        assert!(!drops("-P FORWARD DROP\n-A FORWARD -m physdev --physdev-is-bridged -j ACCEPT\n", "br0"));
        assert!(!drops("-P FORWARD DROP\n-A FORWARD -i br0 -o br0 -j ACCEPT\n", "br0"));
        assert!(!drops("", "br0"));
        let excepted = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -i br0 -o br0 -j ACCEPT\n";
        assert!(!drops(excepted, "br0"));
        assert!(!drops("-P FORWARD DROP\n-A FORWARD -j ACCEPT\n", "br0"));
        assert!(drops("-P FORWARD DROP\n-A INPUT -i br0 -j ACCEPT\n", "br0"));
        assert!(drops("-P FORWARD DROP\n-A FORWARD -i docker0 -j X\n-A X -j ACCEPT\n", "br0"));
        assert!(drops("-P FORWARD DROP\n-A FORWARD ! -i br0 -j ACCEPT\n", "br0"));
    }

    #[test]
    fn gates_that_are_up_are_found() {
        let folder = tempfile::tempdir().unwrap();
        for (name, flags) in [("p2pdb0a1b2c3d", "0x1003\n"), ("p2pdb11111111", "0x1002\n"), ("eth0", "0x1003\n")] {
            write(&folder.path().join("br0/brif").join(name).join("path_cost"), "2\n");
            write(&folder.path().join(name).join("flags"), flags);
        }
        assert_eq!(open_gates(folder.path(), "br0"), ["p2pdb0a1b2c3d"]);
        assert!(open_gates(folder.path(), "nowhere0").is_empty());
    }
}
