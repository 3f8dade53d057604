//! TLS towards backends: whom to trust, and the handshake.

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use super::connect;
use crate::model::probe::TlsProbe;

/// Longest file of authorities, in bytes.
const MAX_CA_LEN: u64 = 4 << 20;

/// Whom one prober trusts: read when it first asks, and again after each bad answer.
#[derive(Default)]
pub(super) struct Trust(Mutex<Option<Arc<ClientConfig>>>);

impl Trust {
    /// Has the authorities read again by the next probe.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn config(&self, probe: &TlsProbe, alpn: &[u8]) -> Result<Arc<ClientConfig>, String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &*known {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(client_config(probe, alpn)?);
        *known = Some(Arc::clone(&config));
        Ok(config)
    }
}

/// Connects, and shakes hands. `host` is the name to check where the probe names none.
pub(super) async fn connect(
    probe: &TlsProbe,
    address: SocketAddr,
    host: Option<&str>,
    alpn: &[u8],
    trust: &Trust,
) -> Result<TlsStream<TcpStream>, String> {
    let config = trust.config(probe, alpn)?;
    let stream = connect::tcp(address).await?;
    let name = match probe.name.as_deref().or(host) {
        Some(name) => ServerName::try_from(without_port(name).to_owned())
            .map_err(|_| format!("TLS: {name:?} is no name that a certificate can be for"))?,
        None => ServerName::from(address.ip()),
    };
    let shaken = TlsConnector::from(config).connect(name, stream).await;
    let stream = shaken.map_err(|error| format!("TLS: {error}"))?;
    match stream.get_ref().1.alpn_protocol() {
        Some(chosen) if chosen != alpn => {
            Err(format!("TLS: the backend chose {:?}", String::from_utf8_lossy(chosen)))
        }
        None if alpn == H2 => Err("TLS: the backend does not offer HTTP/2".into()),
        _ => Ok(stream),
    }
}

/// HTTP/1.1's and HTTP/2's names in ALPN (RFC 7301).
pub(super) const HTTP_1_1: &[u8] = b"http/1.1";
pub(super) const H2: &[u8] = b"h2";

/// A host without its port; IPv6 addresses without their brackets.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => host,
    }
}

fn client_config(probe: &TlsProbe, alpn: &[u8]) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let mut config = if probe.verify {
        let roots = match &probe.ca {
            Some(path) => Arc::new(authorities(path)?),
            None => system_authorities()?,
        };
        builder.with_root_certificates(roots).with_no_client_auth()
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth()
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    // Each probe is a full handshake: what clients without a ticket do.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let at = path.display();
    let unread = |error: std::io::Error| format!("cannot read the CA file {at}: {error}");
    let mut pem = Vec::new();
    let file = fs::File::open(path).map_err(unread)?;
    file.take(MAX_CA_LEN).read_to_end(&mut pem).map_err(unread)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("the CA file {at}: {error}"))?;
        roots.add(certificate).map_err(|error| format!("the CA file {at}: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("the CA file {at} has no certificate in it: write them as PEM"));
    }
    Ok(roots)
}

/// The system's authorities, read once.
fn system_authorities() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        // Some systems have certificates that nothing can read; the others will do.
        let _read = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err("TLS: this system has no certificate authorities; name a CA file".into());
    }
    Ok(Arc::clone(roots))
}

/// Takes any certificate; whoever holds it must have its key all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn hosts_lose_their_port() {
        for (host, name) in [
            ("shop.example", "shop.example"),
            ("shop.example:8443", "shop.example"),
            ("[::1]:80", "::1"),
            ("::1", "::1"),
            ("10.0.0.1:80", "10.0.0.1"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }
}
