//! The steps of one decision, one by one. Every order of events is the model checker's, in `tests/decisions`.

use super::*;
use crate::core::decision::Act;
use crate::core::roster::Obstacle;

const QUIET: Now = Now { wall_ms: 1000, monotonic_us: 0 };

fn name(index: usize) -> ServerName {
    ServerName::new(&format!("S{index}")).unwrap()
}

fn founded(size: usize) -> Memory {
    let mut memory = Memory::default();
    for index in 1..=size {
        let (server, incarnation) = (name(index), Incarnation(1));
        let act = match index {
            1 => Act::Found { founder: server, incarnation },
            _ => Act::Admit { server, incarnation },
        };
        let (author, reason) = (String::new(), String::new());
        memory.decide(Arc::new(Decision { slot: index as Slot, by: name(1), wall_ms: 0, author, reason, act }));
    }
    memory
}

fn chain(me: usize, size: usize) -> Chain {
    let config = ChainConfig { ask_ms: None, ..ChainConfig::new(name(me), Incarnation(1), 7) };
    let mut chain = Chain::new(config, founded(size));
    for peer in (1..=size).filter(|peer| *peer != me) {
        chain.handle(QUIET, ChainInput::LinkUp { peer: name(peer) });
    }
    chain
}

fn recover(target: usize, manager: usize) -> Wish {
    let act = Act::Recover { target: name(target), place: None, manager: name(manager), replaces: None };
    Wish { author: "p2pdb".into(), reason: "silent".into(), act }
}

fn one_of(slot: Slot, by: usize) -> Decision {
    let (author, reason) = (String::new(), String::new());
    Decision { slot, by: name(by), wall_ms: 5, author, reason, act: recover(3, by).act }
}

fn from(peer: usize, message: ChainMessage) -> ChainInput {
    ChainInput::Message { peer: name(peer), message }
}

fn ballot(round: u64, proposer: usize) -> Ballot {
    Ballot { round, proposer: name(proposer), incarnation: Incarnation(1) }
}

fn sends(outputs: &[ChainOutput]) -> Vec<&ChainMessage> {
    let mut messages = Vec::new();
    for output in outputs {
        if let ChainOutput::Send { message, .. } = output {
            messages.push(message);
        }
    }
    messages
}

#[test]
fn a_fresh_decision_takes_two_round_trips_and_waits_for_the_disk_before_each_word() {
    let mut one = chain(1, 3);
    let out = one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(3, 1) });
    assert!(matches!(out.as_slice(), [ChainOutput::Persist(_)]), "nothing is said yet: {out:?}");
    let out = one.handle(QUIET, ChainInput::Persisted);
    assert_eq!(sends(&out), [&ChainMessage::Prepare { slot: 4, ballot: ballot(1, 1) }]);
    let promise = ChainMessage::Promise { slot: 4, ballot: ballot(1, 1), accepted: None };
    let out = one.handle(QUIET, from(2, promise));
    assert!(matches!(sends(&out).as_slice(), [ChainMessage::Accept { .. }]));
    let out = one.handle(QUIET, from(2, ChainMessage::Accepted { slot: 4, ballot: ballot(1, 1) }));
    assert!(out.is_empty(), "its own vote is not on disk: {out:?}");
    let out = one.handle(QUIET, ChainInput::Persisted);
    assert!(matches!(sends(&out).as_slice(), [ChainMessage::Decisions(_)]));
    assert!(out.contains(&ChainOutput::WishDone { ticket: 9, outcome: WishOutcome::Decided(4) }));
    assert!(!one.electorate().contains(&name(3)));
}

#[test]
fn an_acceptor_answers_when_its_disk_has_followed_and_keeps_its_promise_over_a_restart() {
    let mut two = chain(2, 3);
    let prepare = ChainMessage::Prepare { slot: 4, ballot: ballot(2, 3) };
    let out = two.handle(QUIET, from(3, prepare.clone()));
    let [ChainOutput::Persist(records)] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(two.handle(QUIET, from(3, prepare)), [], "asked again, it still waits for the disk");
    let mut memory = founded(3);
    records.iter().for_each(|record| memory.replay(record.clone()).unwrap());
    assert_eq!(sends(&two.handle(QUIET, ChainInput::Persisted)).len(), 1);
    let mut again = Chain::new(ChainConfig::new(name(2), Incarnation(1), 7), memory);
    let out = again.handle(QUIET, from(1, ChainMessage::Prepare { slot: 4, ballot: ballot(1, 1) }));
    let refused = ChainMessage::Refused { slot: 4, ballot: ballot(1, 1), promised: ballot(2, 3) };
    assert_eq!(sends(&out), [&refused]);
}

#[test]
fn a_promise_that_tells_of_another_slot_or_a_later_ballot_is_none() {
    let mut one = chain(1, 3);
    one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(3, 1) });
    one.handle(QUIET, ChainInput::Persisted);
    for accepted in [(ballot(0, 2), one_of(999, 2)), (ballot(7, 2), one_of(4, 2))] {
        let accepted = Some((accepted.0, Arc::new(accepted.1)));
        let out = one.handle(QUIET, from(2, ChainMessage::Promise { slot: 4, ballot: ballot(1, 1), accepted }));
        assert_eq!(out, [], "its disk would have to take what cannot be");
    }
    let out = one.handle(QUIET, from(2, ChainMessage::Promise { slot: 4, ballot: ballot(1, 1), accepted: None }));
    assert!(matches!(sends(&out).as_slice(), [ChainMessage::Accept { decision, .. }] if decision.slot == 4));
}

#[test]
fn a_value_that_was_accepted_is_finished_before_the_own_wish() {
    let mut one = chain(1, 3);
    one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(3, 1) });
    one.handle(QUIET, ChainInput::Persisted);
    let other = Arc::new(one_of(4, 2));
    let promise =
        ChainMessage::Promise { slot: 4, ballot: ballot(1, 1), accepted: Some((ballot(0, 2), other.clone())) };
    let out = one.handle(QUIET, from(2, promise));
    assert_eq!(sends(&out), [&ChainMessage::Accept { ballot: ballot(1, 1), decision: other }]);
    one.handle(QUIET, ChainInput::Persisted);
    let out = one.handle(QUIET, from(2, ChainMessage::Accepted { slot: 4, ballot: ballot(1, 1) }));
    let overtaken = WishOutcome::Overtaken(Obstacle::Recovered { target: name(3), slot: 4 });
    assert!(out.contains(&ChainOutput::WishDone { ticket: 9, outcome: overtaken }), "{out:?}");
}

#[test]
fn whoever_is_behind_is_told_before_it_votes() {
    let mut behind = Chain::new(ChainConfig::new(name(2), Incarnation(1), 7), founded(2));
    let prepare = ChainMessage::Prepare { slot: 4, ballot: ballot(1, 1) };
    assert_eq!(sends(&behind.handle(QUIET, from(1, prepare.clone()))), [&ChainMessage::WantDecisions { from: 3 }]);
    let missing = founded(3).decisions[2..].to_vec();
    behind.handle(QUIET, from(1, ChainMessage::Decisions(missing)));
    behind.handle(QUIET, from(1, prepare));
    assert_eq!(behind.decisions().len(), 3);
    assert!(behind.memory().acceptor.promised().is_some());
}

#[test]
fn a_server_with_another_file_does_not_vote_and_says_so() {
    let mut three = Chain::new(ChainConfig::new(name(3), Incarnation(2), 7), founded(3));
    assert_eq!(three.standing(), Standing::Forgotten);
    let out = three.handle(QUIET, from(1, ChainMessage::Prepare { slot: 4, ballot: ballot(1, 1) }));
    assert_eq!(sends(&out), [&ChainMessage::Abstained { slot: 4, ballot: ballot(1, 1) }]);
}

#[test]
fn a_founder_decides_the_first_slot_alone() {
    let mut one = Chain::new(ChainConfig::new(name(1), Incarnation(1), 7), Memory::default());
    assert_eq!(one.standing(), Standing::NothingKnown);
    let act = Act::Found { founder: name(1), incarnation: Incarnation(1) };
    let mut out = one.handle(QUIET, ChainInput::Wish { ticket: 1, wish: Wish { act, ..recover(1, 1) } });
    for _ in 0..3 {
        out = one.handle(QUIET, ChainInput::Persisted);
        if one.standing() == Standing::Elector {
            break;
        }
    }
    assert!(out.contains(&ChainOutput::WishDone { ticket: 1, outcome: WishOutcome::Decided(1) }), "{out:?}");
}

#[test]
fn what_a_wish_waits_for_is_told_in_words() {
    let mut one = chain(1, 4);
    one.handle(QUIET, ChainInput::LinkDown { peer: name(4) });
    one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(3, 1) });
    one.handle(QUIET, ChainInput::Wish { ticket: 10, wish: recover(4, 1) });
    one.handle(QUIET, from(2, ChainMessage::Abstained { slot: 5, ballot: ballot(1, 1) }));
    let progress: Vec<String> = one.progress().iter().map(|(_, progress)| progress.to_string()).collect();
    let voting = "decision 5: 0 of 4 electors answered; missing: S1, S3; out of reach: S4; has lost its Decision.dat and \
                  must be admitted again: S2; a quorum needs 3, or 2 with S1";
    assert_eq!(progress, [voting, "waits for another decision to be finished"]);
}

#[test]
fn a_wish_may_be_withdrawn_until_others_have_seen_it() {
    let mut one = chain(1, 3);
    one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(3, 1) });
    let withdrawn =
        |may_be_decided| ChainOutput::WishDone { ticket: 9, outcome: WishOutcome::Withdrawn { may_be_decided } };
    assert_eq!(one.clone().handle(QUIET, ChainInput::Cancel { ticket: 9 })[0], withdrawn(false));
    one.handle(QUIET, ChainInput::Persisted);
    one.handle(QUIET, from(2, ChainMessage::Promise { slot: 4, ballot: ballot(1, 1), accepted: None }));
    assert_eq!(one.handle(QUIET, ChainInput::Cancel { ticket: 9 })[0], withdrawn(true));
}

#[test]
fn questions_are_asked_again_only_after_a_while() {
    let mut one = chain(1, 3);
    one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(3, 1) });
    one.handle(QUIET, ChainInput::Persisted);
    assert_eq!(one.handle(QUIET, ChainInput::Tick), []);
    let later = Now { monotonic_us: one.next_wake_us().unwrap(), ..QUIET };
    assert!((100_000..=300_000).contains(&later.monotonic_us));
    assert_eq!(sends(&one.handle(later, ChainInput::Tick)).len(), 1);
}

#[test]
fn a_host_that_was_chosen_twice_is_chosen_again() {
    let place = |original: &str| Some(super::super::decision::Place { host: name(1), original: original.into() });
    let act = |target, place| Act::Recover { target: name(target), place, manager: name(1), replaces: None };
    let mut one = chain(1, 4);
    one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: Wish { act: act(3, place("a")), ..recover(3, 1) } });
    let (author, reason) = (String::new(), String::new());
    let other = Decision { slot: 5, by: name(2), wall_ms: 5, author, reason, act: act(4, place("b")) };
    let out = one.handle(QUIET, from(2, ChainMessage::Decisions(vec![Arc::new(other)])));
    let taken = WishOutcome::Overtaken(Obstacle::HostTaken { host: name(1), slot: 5 });
    assert!(out.contains(&ChainOutput::WishDone { ticket: 9, outcome: taken }), "{out:?}");
}

#[test]
fn another_chain_is_noticed_at_the_link() {
    let mut one = chain(1, 3);
    let mut other = (*founded(3).decisions[2]).clone();
    other.wall_ms = 77;
    let out = one.handle(QUIET, from(2, ChainMessage::Decisions(vec![Arc::new(other)])));
    assert!(matches!(out.as_slice(), [ChainOutput::Forked { .. }]));
    assert_eq!(one.handle(QUIET, from(2, ChainMessage::Prepare { slot: 4, ballot: ballot(1, 2) })), []);
}

#[test]
fn under_the_papers_policy_two_halves_decide_and_notice_when_they_meet() {
    let alone = |me: usize, target: usize| {
        let config =
            ChainConfig { policy: Policy::Paper, ask_ms: None, ..ChainConfig::new(name(me), Incarnation(1), 7) };
        let mut chain = Chain::new(config, founded(2));
        chain.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(target, me) });
        (0..2).for_each(|_| drop(chain.handle(QUIET, ChainInput::Persisted)));
        assert_eq!(chain.decisions().len(), 3);
        chain
    };
    let (mut one, mut two) = (alone(1, 2), alone(2, 1));
    let out = one.handle(QUIET, ChainInput::LinkUp { peer: name(2) });
    let [question] = sends(&out)[..] else { panic!("{out:?}") };
    let out = two.handle(QUIET, from(1, question.clone()));
    let [answer] = sends(&out)[..] else { panic!("{out:?}") };
    let out = one.handle(QUIET, from(2, answer.clone()));
    assert!(matches!(out.as_slice(), [ChainOutput::Forked { .. }]), "{out:?}");
    assert!(
        !sends(&one.handle(QUIET, from(2, ChainMessage::WantDecisions { from: 3 }))).is_empty(),
        "so the other notices"
    );
}

#[test]
fn a_value_that_was_accepted_is_settled_again_and_again_until_it_is_decided() {
    let mut one = chain(1, 3);
    let decision = Arc::new(one_of(4, 2));
    one.handle(QUIET, from(2, ChainMessage::Accept { ballot: ballot(1, 2), decision }));
    one.handle(QUIET, ChainInput::Persisted);
    let mut now = QUIET;
    let mut settles = |one: &mut Chain| {
        while one.ballot().is_none() {
            now.monotonic_us = one.next_wake_us().expect("it goes on");
            one.handle(now, ChainInput::Tick);
        }
        sends(&one.handle(now, ChainInput::Persisted)).into_iter().cloned().collect::<Vec<_>>()
    };
    assert_eq!(settles(&mut one), [ChainMessage::Prepare { slot: 4, ballot: ballot(2, 1) }]);
    let refused = ChainMessage::Refused { slot: 4, ballot: ballot(2, 1), promised: ballot(2, 3) };
    one.handle(QUIET, from(3, refused));
    assert_eq!(settles(&mut one), [ChainMessage::Prepare { slot: 4, ballot: ballot(3, 1) }]);
}

#[test]
fn a_round_that_nobody_gets_to_by_counting_is_not_believed() {
    let (far, mut one) = (ballot(1 << 47, 3), chain(1, 3));
    assert_eq!(one.handle(QUIET, from(3, ChainMessage::Prepare { slot: 4, ballot: far.clone() })), []);
    let decision = Arc::new(one_of(4, 3));
    assert_eq!(one.handle(QUIET, from(3, ChainMessage::Accept { ballot: far.clone(), decision })), []);
    one.handle(QUIET, ChainInput::Wish { ticket: 9, wish: recover(3, 1) });
    one.handle(QUIET, from(3, ChainMessage::Refused { slot: 4, ballot: ballot(1, 1), promised: far }));
    assert_eq!(one.ballot(), Some((&ballot(1, 1), Phase::Prepare)));
}
