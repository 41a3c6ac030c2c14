//! What servers say to each other while they watch and recover: opinions, leases, looks, warm-ups. Parts of a message.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::FormatError;
use crate::core::decision::{AUTHOR_BYTES_MAX, ORIGINAL_BYTES_MAX, ServiceAddress};
use crate::core::id::ServerName;
use crate::core::lease::LeaseMessage;
use crate::core::management::ManagementMessage;
use crate::core::opinion::{Blindness, Failure, Health, Opinion};

const WHAT: &str = "a message of management";

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum HealthV1 {
    Unknown,
    Healthy,
    Suspect,
    FailedService,
    FailedNetwork,
    FailedHost,
    BlindIsolated,
    BlindServiceNetwork,
    BlindUnable,
}

impl From<Health> for HealthV1 {
    fn from(health: Health) -> Self {
        match health {
            Health::Unknown => Self::Unknown,
            Health::Healthy => Self::Healthy,
            Health::Suspect => Self::Suspect,
            Health::Failed(Failure::Service) => Self::FailedService,
            Health::Failed(Failure::Network) => Self::FailedNetwork,
            Health::Failed(Failure::Host) => Self::FailedHost,
            Health::Blind(Blindness::Isolated) => Self::BlindIsolated,
            Health::Blind(Blindness::ServiceNetwork) => Self::BlindServiceNetwork,
            Health::Blind(Blindness::Unable) => Self::BlindUnable,
        }
    }
}

impl From<HealthV1> for Health {
    fn from(health: HealthV1) -> Self {
        match health {
            HealthV1::Unknown => Self::Unknown,
            HealthV1::Healthy => Self::Healthy,
            HealthV1::Suspect => Self::Suspect,
            HealthV1::FailedService => Self::Failed(Failure::Service),
            HealthV1::FailedNetwork => Self::Failed(Failure::Network),
            HealthV1::FailedHost => Self::Failed(Failure::Host),
            HealthV1::BlindIsolated => Self::Blind(Blindness::Isolated),
            HealthV1::BlindServiceNetwork => Self::Blind(Blindness::ServiceNetwork),
            HealthV1::BlindUnable => Self::Blind(Blindness::Unable),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct OpinionV1<'a> {
    target: &'a str,
    host: &'a str,
    health: HealthV1,
}

impl<'a> From<&'a Opinion> for OpinionV1<'a> {
    fn from(opinion: &'a Opinion) -> Self {
        Self { target: opinion.target.as_str(), host: opinion.host.as_str(), health: opinion.health.into() }
    }
}

impl OpinionV1<'_> {
    pub fn opinion(&self) -> Result<Opinion, FormatError> {
        Ok(Opinion { target: name(self.target)?, host: name(self.host)?, health: self.health.into() })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub enum LeaseMessageV1<'a> {
    Request { number: u64, open_slot: u64 },
    Grant { number: u64 },
    WantAge { holder: &'a str, slot: u64 },
    Age { holder: &'a str, slot: u64, age_ms: u64 },
}

impl<'a> From<&'a LeaseMessage> for LeaseMessageV1<'a> {
    fn from(message: &'a LeaseMessage) -> Self {
        match message {
            LeaseMessage::Request { number, open_slot } => Self::Request { number: *number, open_slot: *open_slot },
            LeaseMessage::Grant { number } => Self::Grant { number: *number },
            LeaseMessage::WantAge { holder, slot } => Self::WantAge { holder: holder.as_str(), slot: *slot },
            LeaseMessage::Age { holder, slot, age_ms } => {
                Self::Age { holder: holder.as_str(), slot: *slot, age_ms: *age_ms }
            }
        }
    }
}

impl LeaseMessageV1<'_> {
    pub fn message(&self) -> Result<LeaseMessage, FormatError> {
        Ok(match *self {
            Self::Request { number, open_slot } => LeaseMessage::Request { number, open_slot },
            Self::Grant { number } => LeaseMessage::Grant { number },
            Self::WantAge { holder, slot } => LeaseMessage::WantAge { holder: name(holder)?, slot },
            Self::Age { holder, slot, age_ms } => LeaseMessage::Age { holder: name(holder)?, slot, age_ms },
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceAddressV1 {
    ip: IpAddr,
    prefix: u8,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ManagementMessageV1<'a> {
    WantLook { slot: u64, round: u64, address: ServiceAddressV1 },
    Look { slot: u64, round: u64, answers: Option<bool> },
    LetGo { target: &'a str, slot: u64 },
    WarmUp { target: &'a str, original: &'a str },
    CoolDown { target: &'a str, original: &'a str },
    WantLetGo { target: &'a str, slot: u64 },
    Failback { author: &'a str },
}

impl<'a> From<&'a ManagementMessage> for ManagementMessageV1<'a> {
    fn from(message: &'a ManagementMessage) -> Self {
        match message {
            ManagementMessage::WantLook { slot, round, address: ServiceAddress { ip, prefix } } => {
                let address = ServiceAddressV1 { ip: *ip, prefix: *prefix };
                Self::WantLook { slot: *slot, round: *round, address }
            }
            ManagementMessage::Look { slot, round, answers } => {
                Self::Look { slot: *slot, round: *round, answers: *answers }
            }
            ManagementMessage::LetGo { target, slot } => Self::LetGo { target: target.as_str(), slot: *slot },
            ManagementMessage::WarmUp { target, original } => Self::WarmUp { target: target.as_str(), original },
            ManagementMessage::CoolDown { target, original } => Self::CoolDown { target: target.as_str(), original },
            ManagementMessage::WantLetGo { target, slot } => Self::WantLetGo { target: target.as_str(), slot: *slot },
            ManagementMessage::Failback { author } => Self::Failback { author },
        }
    }
}

impl ManagementMessageV1<'_> {
    pub fn message(&self) -> Result<ManagementMessage, FormatError> {
        Ok(match *self {
            Self::WantLook { slot, round, ref address } => {
                let ServiceAddressV1 { ip, prefix } = *address;
                let bits = if ip.is_ipv4() { 32 } else { 128 };
                if !(1..=bits).contains(&prefix) {
                    return Err(FormatError::malformed(WHAT, format!("{ip}/{prefix} is no address")));
                }
                ManagementMessage::WantLook { slot, round, address: ServiceAddress { ip, prefix } }
            }
            Self::Look { slot, round, answers } => ManagementMessage::Look { slot, round, answers },
            Self::LetGo { target, slot } => ManagementMessage::LetGo { target: name(target)?, slot },
            Self::WarmUp { target, original } => {
                ManagementMessage::WarmUp { target: name(target)?, original: checked_original(original)? }
            }
            Self::CoolDown { target, original } => {
                ManagementMessage::CoolDown { target: name(target)?, original: checked_original(original)? }
            }
            Self::WantLetGo { target, slot } => ManagementMessage::WantLetGo { target: name(target)?, slot },
            Self::Failback { author } => ManagementMessage::Failback { author: checked_author(author)? },
        })
    }
}

fn name(text: &str) -> Result<ServerName, FormatError> {
    ServerName::new(text).map_err(|error| FormatError::malformed(WHAT, error))
}

fn checked_author(text: &str) -> Result<String, FormatError> {
    match text.len() {
        0..=AUTHOR_BYTES_MAX => Ok(text.to_owned()),
        bytes => Err(FormatError::TooLarge { what: "the author of a message", bytes, limit: AUTHOR_BYTES_MAX }),
    }
}

fn checked_original(text: &str) -> Result<String, FormatError> {
    match text.len() {
        0..=ORIGINAL_BYTES_MAX => Ok(text.to_owned()),
        bytes => {
            Err(FormatError::TooLarge { what: "the name of an original server", bytes, limit: ORIGINAL_BYTES_MAX })
        }
    }
}
