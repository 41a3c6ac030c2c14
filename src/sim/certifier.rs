//! A toy certificate authority: a certificate is a name, a public key, and the authority's Ed25519 signature of both.
//!
//! It stands in for X.509, which is an adapter's business; the signatures of entries are the real ones.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::core::id::{ClusterId, ServerName};
use crate::core::oplog::Certifier;

/// Issues certificates; kept by the simulator.
pub struct Authority {
    key: SigningKey,
}

impl Authority {
    pub fn new(secret: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&secret) }
    }

    pub fn cluster(&self) -> ClusterId {
        ClusterId::of_public_key(self.key.verifying_key().as_bytes())
    }

    pub fn issue(&self, name: &ServerName, key: &VerifyingKey) -> Arc<[u8]> {
        let mut certificate = key.to_bytes().to_vec();
        certificate.extend_from_slice(name.as_str().as_bytes());
        let signature = self.key.sign(&certificate).to_bytes();
        [signature.as_slice(), &certificate].concat().into()
    }

    /// What every server knows of the authority.
    pub fn certifier(&self) -> ToyCertifier {
        ToyCertifier { key: self.key.verifying_key(), genuine: Mutex::default() }
    }
}

/// Checks certificates. Those once found genuine are remembered: a run sees few of them, very often.
pub struct ToyCertifier {
    key: VerifyingKey,
    genuine: Mutex<BTreeSet<Vec<u8>>>,
}

impl Certifier for ToyCertifier {
    fn certified(&self, certificate: &[u8]) -> Result<(ServerName, [u8; 32]), String> {
        let (signature, content) = certificate.split_first_chunk::<64>().ok_or("it is too short")?;
        let (public_key, name) = content.split_first_chunk::<32>().ok_or("it is too short")?;
        let signature = Signature::from_bytes(signature);
        let mut genuine = self.genuine.lock().unwrap_or_else(PoisonError::into_inner);
        if !genuine.contains(certificate) {
            self.key.verify_strict(content, &signature).map_err(|_| "another authority has signed it".to_owned())?;
            genuine.insert(certificate.to_vec());
        }
        let name = std::str::from_utf8(name).map_err(|error| error.to_string())?;
        Ok((ServerName::new(name).map_err(|error| error.to_string())?, *public_key))
    }
}
