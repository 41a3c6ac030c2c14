//! The QUIC endpoint: socket, transport parameters, and stateless resets that outlive a restart.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt,
};

use super::certificate::fill_random;
use super::quic::MeshConfig;
use super::tls::TlsIdentity;

const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
const CONNECTION_ID_BYTES: usize = 8;

/// The transport parameters of both directions.
pub(crate) fn transport_config(config: &MeshConfig) -> TransportConfig {
    let idle = VarInt::from_u64(config.idle_timeout_ms).map(IdleTimeout::from).ok();
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(idle)
        .keep_alive_interval(Some(Duration::from_millis(config.keep_alive_ms)))
        .initial_rtt(Duration::from_millis(config.initial_rtt_ms))
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(config.window_bytes))
        .receive_window(VarInt::from_u32(config.window_bytes.saturating_mul(2)))
        // More than Bulk may have on its way, so that Live always finds room.
        .send_window(u64::from(config.window_bytes) * 3)
        .enable_segmentation_offload(config.offload);
    transport
}

/// Opens the socket and the endpoint on it.
pub(crate) fn bind(address: SocketAddr, identity: &TlsIdentity, server: quinn::ServerConfig) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    // The system may cap these; smaller buffers cost retransmissions only.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let mut config = EndpointConfig::new(Arc::new(ResetKey(identity.reset_key())));
    config.cid_generator(|| Box::new(RandomConnectionIds));
    Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
}

/// Makes reset tokens from connection ids. The same key after a restart makes the tokens that peers remember.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        // Comparing digests takes the same time wherever they differ.
        <[u8; 32]>::try_from(signature).ok().filter(|given| expected == *given).map(|_| ()).ok_or(CryptoError)
    }
}

/// Plain random connection ids. quinn's own carry a mark made with a key of the process, by which ids from before a
/// restart would be dropped in silence instead of being answered with a reset.
struct RandomConnectionIds;

impl ConnectionIdGenerator for RandomConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        fill_random(&mut id).expect("TLS already needed the system's randomness");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
