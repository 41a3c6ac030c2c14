//! Who manages whom (the paper, section 2, Fig. 1): in the ring of the group each server is managed by its predecessor with
//! priority 1 and by its successor with priority 2.
//!
//! The ring is a function of the files: the members are the records of `Group`, in the order of `Server`, then by name. A server
//! that has left the group keeps its place between its neighbours, so the same two servers look after its stand-in.
//! Invariant: while the group has another server, every server has a first manager that is in the group (P8).

use std::collections::BTreeSet;

use super::id::ServerName;
use super::merge::Files;
use super::record::Record;
use super::schema::file;

/// The two that manage a target. In a group of two the first manages alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Managers {
    pub first: Option<ServerName>,
    pub second: Option<ServerName>,
}

/// The members of the group in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ring {
    /// All servers that are known, members or not, in ring order.
    places: Vec<ServerName>,
    members: BTreeSet<ServerName>,
}

impl Ring {
    /// The ring that the files `Group` and `Server` describe.
    pub fn of(files: &Files) -> Self {
        let members =
            files.records_of(file::GROUP).filter_map(|record| ServerName::new(record.field(0)).ok()).collect();
        let mut ordered: Vec<(f64, ServerName)> = files
            .records_of(file::SERVER)
            .filter_map(|record| {
                let order = record.field(1).parse().unwrap_or(f64::INFINITY);
                Some((order, ServerName::new(record.field(0)).ok()?))
            })
            .collect();
        ordered.sort_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| x.cmp(y)));
        Self::new(ordered.into_iter().map(|(_, name)| name), members)
    }

    /// A ring of `members`, which stand as in `order`; members that are not in it come last, by name.
    pub fn new(order: impl IntoIterator<Item = ServerName>, members: BTreeSet<ServerName>) -> Self {
        let mut places: Vec<ServerName> = order.into_iter().collect();
        let known: BTreeSet<&ServerName> = places.iter().collect();
        let rest: Vec<ServerName> = members.iter().filter(|name| !known.contains(name)).cloned().collect();
        places.extend(rest);
        Self { places, members }
    }

    /// All servers that are known, members or not, in ring order.
    pub fn places(&self) -> &[ServerName] {
        &self.places
    }

    /// The ring of those members alone who manage: the others keep their places, as if they were out of the group.
    pub fn of_those(&self, manages: impl Fn(&ServerName) -> bool) -> Self {
        let members = self.members.iter().filter(|name| manages(name)).cloned().collect();
        Self { places: self.places.clone(), members }
    }

    /// The members in ring order.
    pub fn members(&self) -> impl Iterator<Item = &ServerName> {
        self.places.iter().filter(|name| self.members.contains(*name))
    }

    pub fn contains(&self, server: &ServerName) -> bool {
        self.members.contains(server)
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Who manages `target`, a member or a server that a stand-in plays. `host` runs the target: itself, or the host
    /// of its stand-in, which does not manage what it runs while anybody else can.
    pub fn managers(&self, target: &ServerName, host: &ServerName) -> Managers {
        let after: Vec<&ServerName> = self.after(target).collect();
        let able: Vec<&ServerName> = after.iter().copied().filter(|name| *name != host).collect();
        let able = if able.is_empty() { after } else { able };
        let first = able.last().copied().cloned();
        let second = able.first().copied().filter(|_| able.len() > 1).cloned();
        Managers { first, second }
    }

    /// How many members stand between `from` and `to`, going forward: orders the members as `from` sees them.
    pub fn distance(&self, from: &ServerName, to: &ServerName) -> usize {
        self.after(from).position(|name| name == to).unwrap_or(usize::MAX)
    }

    /// The records of the file `Operation`: priority, manager, target.
    pub fn operation(&self) -> Vec<Record> {
        let mut rows = Vec::new();
        for target in self.members() {
            let managers = self.managers(target, target);
            for (priority, manager) in [("P1", managers.first), ("P2", managers.second)] {
                let row = manager.map(|manager| Record::of([priority, manager.as_str(), target.as_str()]));
                rows.extend(row);
            }
        }
        rows
    }

    /// The other members, from the successor of `server` round to its predecessor.
    fn after<'a>(&'a self, server: &'a ServerName) -> impl Iterator<Item = &'a ServerName> {
        // A server that nobody knows comes last.
        let at = self.places.iter().position(|name| name == server).unwrap_or(self.places.len());
        let turned = self.places[at..].iter().skip(1).chain(&self.places[..at]);
        turned.filter(|name| self.members.contains(*name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server(name: &str) -> ServerName {
        ServerName::new(name).unwrap()
    }

    fn ring(order: &[&str], members: &[&str]) -> Ring {
        Ring::new(order.iter().map(|name| server(name)), members.iter().map(|name| server(name)).collect())
    }

    fn managed(ring: &Ring, target: &str, host: &str) -> (String, String) {
        let managers = ring.managers(&server(target), &server(host));
        let name = |manager: Option<ServerName>| manager.map_or("-".to_owned(), |name| name.to_string());
        (name(managers.first), name(managers.second))
    }

    fn pair(first: &str, second: &str) -> (String, String) {
        (first.to_owned(), second.to_owned())
    }

    const SIX: [&str; 6] = ["S1", "S2", "S3", "S4", "S5", "S6"];

    #[test]
    fn figure_1_of_the_paper() {
        let whole = ring(&SIX, &SIX);
        assert_eq!(managed(&whole, "S2", "S2"), pair("S1", "S3"));
        assert_eq!(managed(&whole, "S1", "S1"), pair("S6", "S2"));
        let rows: Vec<String> = whole.operation().iter().map(ToString::to_string).collect();
        assert_eq!(rows.len(), 12);
        assert!(rows.contains(&"P1, S1, S2".to_owned()) && rows.contains(&"P2, S3, S2".to_owned()));
        let without = ring(&SIX, &["S1", "S3", "S4", "S5", "S6"]);
        assert_eq!(managed(&without, "S3", "S3"), pair("S1", "S4"));
        assert!(without.operation().iter().all(|row| row.field(2) != "S2"));
    }

    #[test]
    fn a_stand_in_is_managed_by_the_neighbours_of_whom_it_plays_and_not_by_its_host() {
        let without = ring(&SIX, &["S1", "S3", "S4", "S5", "S6"]);
        assert_eq!(managed(&without, "S2", "S6"), pair("S1", "S3"));
        assert_eq!(managed(&without, "S2", "S1"), pair("S6", "S3"));
        let two = ring(&SIX, &["S1", "S6"]);
        assert_eq!(managed(&two, "S2", "S6"), pair("S1", "-"));
        let one = ring(&SIX, &["S6"]);
        assert_eq!(managed(&one, "S2", "S6"), pair("S6", "-"));
    }

    #[test]
    fn the_last_two_manage_each_other_and_the_last_one_is_alone() {
        let two = ring(&SIX, &["S2", "S5"]);
        assert_eq!(managed(&two, "S2", "S2"), pair("S5", "-"));
        assert_eq!(managed(&two, "S5", "S5"), pair("S2", "-"));
        assert_eq!(managed(&ring(&SIX, &["S4"]), "S4", "S4"), pair("-", "-"));
    }

    #[test]
    fn the_order_is_that_of_the_file_and_not_that_of_the_names() {
        let ring = ring(&["mail", "web1", "ftp", "proxy"], &["ftp", "mail", "proxy", "web1"]);
        assert_eq!(managed(&ring, "web1", "web1"), pair("mail", "ftp"));
        assert_eq!(managed(&ring, "mail", "mail"), pair("proxy", "web1"));
    }

    proptest! {
        /// Whoever is gone, neighbours in a run included: the rest watches itself and all that are gone.
        #[test]
        fn any_run_of_failures_is_closed_up(size in 2..50usize, alive in proptest::collection::vec(any::<bool>(), 50)) {
            let names: Vec<ServerName> = (0..size).map(|index| server(&format!("S{index:02}"))).collect();
            let members: BTreeSet<ServerName> =
                names.iter().zip(&alive).filter(|(_, alive)| **alive).map(|(name, _)| name.clone()).collect();
            let ring = Ring::new(names.iter().cloned(), members.clone());
            let mut first_of = std::collections::BTreeMap::new();
            for target in &names {
                let Managers { first, second } = ring.managers(target, target);
                let others = members.iter().filter(|name| *name != target).count();
                prop_assert_eq!(first.is_some(), others >= 1);
                prop_assert_eq!(second.is_some(), others >= 2);
                prop_assert!(first.is_none() || first != second);
                for manager in [first.as_ref(), second.as_ref()].into_iter().flatten() {
                    prop_assert!(members.contains(manager) && manager != target);
                }
                if let Some(first) = first.filter(|_| members.contains(target)) {
                    prop_assert!(first_of.insert(first, target.clone()).is_none(), "each manages one member first");
                }
            }
        }
    }
}
