//! A certificate authority of one's own, for names that no public one signs for.

use beanpole_protocol::Timestamp;
use beanpole_protocol::tls::{PrivateKey, is_name};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::net::IpAddr;
use std::time::Duration;
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long an authority is valid.
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// By how much certificates are valid before they are made: clocks of clients differ.
const BACKDATED: Duration = Duration::from_mins(5);
/// The longest that clients of Apple take a certificate of a private authority for.
pub const LONGEST_LIFETIME: Duration = Duration::from_hours(825 * 24);
/// Addresses of private networks (RFC 1918, RFC 4193), of the link and of the machine itself: no others are
/// signed for.
const PRIVATE_NETWORKS: [(IpAddr, u8); 7] = [
    (IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 0)), 8),
    (
        IpAddr::V6(std::net::Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)),
        7,
    ),
    (
        IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)),
        10,
    ),
    (IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 128),
];

/// A certificate and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: PrivateKey,
}

/// Why an authority does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A name is neither a hostname nor an address.
    #[error("`{0}` is neither a hostname nor an IP address")]
    NoHost(String),
    /// What it is to sign below is no domain.
    #[error("`{0}` is no domain")]
    NoDomain(String),
    /// It may not sign for that name.
    #[error(
        "the authority may sign for names below {allowed} and private addresses only, and `{host}` is none"
    )]
    NotAllowed {
        /// The name.
        host: String,
        /// The domains that it may sign for.
        allowed: String,
    },
    /// No name was given.
    #[error("no hostname is given")]
    NoHosts,
    /// What is kept of it cannot be read.
    #[error("the authority's own certificate cannot be read: {0}")]
    Unreadable(String),
    /// The certificate could not be made.
    #[error("the certificate could not be made")]
    Make(#[from] rcgen::Error),
}

/// Refuses what is no domain that an authority could sign below. Private addresses are signed for in any case.
pub fn check_domains(domains: &[String]) -> Result<(), AuthorityError> {
    let odd = |domain: &&String| {
        !is_name(domain) || domain.starts_with("*.") || domain.parse::<IpAddr>().is_ok()
    };
    match domains.iter().find(odd) {
        Some(odd) => Err(AuthorityError::NoDomain(beanpole_protocol::ids::shown(odd))),
        None => Ok(()),
    }
}

/// Makes an authority that clients will believe for `domains`, every name below these, and addresses of
/// private networks alone, whoever gets hold of its key (RFC 5280, section 4.2.1.10).
pub fn create(name: &str, domains: &[String], now: Timestamp) -> Result<Made, AuthorityError> {
    if domains.is_empty() {
        return Err(AuthorityError::NoHosts);
    }
    let mut parameters = CertificateParams::default();
    check_domains(domains)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Beanpole");
    subject.push(DnType::CommonName, name);
    parameters.distinguished_name = subject;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.use_authority_key_identifier_extension = true;
    let names = domains.iter().cloned().map(GeneralSubtree::DnsName);
    let addresses = PRIVATE_NETWORKS.iter().map(|(network, bits)| {
        GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*network, *bits))
    });
    parameters.name_constraints = Some(NameConstraints {
        permitted_subtrees: names.chain(addresses).collect(),
        excluded_subtrees: Vec::new(),
    });
    (parameters.not_before, parameters.not_after) = validity(now, AUTHORITY_LIFETIME);
    let key = KeyPair::generate()?;
    let certificate = parameters.self_signed(&key)?;
    Ok(Made {
        certificate: certificate.pem(),
        key: PrivateKey(key.serialize_pem()),
    })
}

/// Signs a new key for `hosts`: names, `*.name`, addresses.
pub fn issue(
    authority: &Made,
    hosts: &[String],
    lifetime: Duration,
    now: Timestamp,
) -> Result<Made, AuthorityError> {
    let allowed = domains(&authority.certificate)?;
    let first = hosts.first().ok_or(AuthorityError::NoHosts)?;
    let mut names = Vec::new();
    for host in hosts {
        names.push(subject_name(host, &allowed)?);
    }
    let mut parameters = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    // Browsers do not look at it; people do.
    subject.push(
        DnType::CommonName,
        first.chars().take(64).collect::<String>(),
    );
    parameters.distinguished_name = subject;
    parameters.subject_alt_names = names;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.use_authority_key_identifier_extension = true;
    (parameters.not_before, parameters.not_after) = validity(now, lifetime.min(LONGEST_LIFETIME));
    let signer = KeyPair::from_pem(&authority.key.0)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, signer)?;
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, &issuer)?;
    Ok(Made {
        certificate: certificate.pem(),
        key: PrivateKey(key.serialize_pem()),
    })
}

/// The domains that an authority may sign for.
pub fn domains(certificate: &str) -> Result<Vec<String>, AuthorityError> {
    let unreadable = |why: String| AuthorityError::Unreadable(why);
    let der = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|error| unreadable(error.to_string()))?;
    let (_, parsed) =
        X509Certificate::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
    let mut found = Vec::new();
    for extension in parsed.extensions() {
        if let ParsedExtension::NameConstraints(constraints) = extension.parsed_extension() {
            for subtree in constraints.permitted_subtrees.iter().flatten() {
                if let GeneralName::DNSName(name) = subtree.base {
                    found.push(name.to_owned());
                }
            }
        }
    }
    Ok(found)
}

/// Whether a host lies within what an authority for `domains` may sign.
pub fn may_sign(domains: &[String], host: &str) -> bool {
    subject_name(host, domains).is_ok()
}

fn subject_name(host: &str, allowed: &[String]) -> Result<SanType, AuthorityError> {
    let refused = || AuthorityError::NotAllowed {
        host: host.to_owned(),
        allowed: allowed.join(", "),
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        let private = PRIVATE_NETWORKS
            .iter()
            .any(|(network, bits)| within(address, *network, *bits));
        return if private {
            Ok(SanType::IpAddress(address))
        } else {
            Err(refused())
        };
    }
    if !is_name(host) {
        return Err(AuthorityError::NoHost(host.to_owned()));
    }
    let plain = host.strip_prefix("*.").unwrap_or(host);
    let below = allowed.iter().any(|domain| {
        plain == domain
            || plain
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
    });
    if !below {
        return Err(refused());
    }
    Ok(SanType::DnsName(host.try_into()?))
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            u32::from(address) & mask == u32::from(network) & mask
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            u128::from(address) & mask == u128::from(network) & mask
        }
        _ => false,
    }
}

fn validity(now: Timestamp, lifetime: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let at = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(now.as_millis());
    (at - BACKDATED, at + lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{Leave, inspect};

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn authority() -> Made {
        create("of a test", &["home.example".to_owned()], NOW).expect("an authority")
    }

    fn hosts(hosts: &[&str]) -> Vec<String> {
        hosts.iter().map(|host| (*host).to_owned()).collect()
    }

    #[test]
    fn what_it_signs_is_good_for_its_hosts_and_belongs_to_it() {
        let authority = authority();
        let wanted = hosts(&[
            "nas.home.example",
            "*.home.example",
            "192.168.1.5",
            "home.example",
        ]);
        let made = issue(&authority, &wanted, Duration::from_hours(24), NOW).expect("signed");
        let chain = format!("{}{}", made.certificate, authority.certificate);
        let seen = inspect(&chain, &made.key.0, Leave::default(), NOW).expect("good");
        assert_eq!(
            seen.facts.names,
            ["*.home.example", "home.example", "nas.home.example"]
        );
        assert_eq!(seen.facts.issuer, "Beanpole of a test");
        let lifetime = seen.facts.not_after.since(NOW);
        assert_eq!(lifetime, Duration::from_hours(24));
    }

    #[test]
    fn it_is_made_for_domains_alone() {
        for odd in ["ho me", "*.home.example", "192.168.1.5", "-home", ""] {
            let refused = create("of a test", &hosts(&["home.example", odd]), NOW);
            assert!(matches!(refused, Err(AuthorityError::NoDomain(_))), "{odd}");
        }
    }

    #[test]
    fn it_signs_for_nobody_elses_names() {
        let authority = authority();
        for wrong in [
            "example.com",
            "evilhome.example",
            "8.8.8.8",
            "a b",
            "2001:db8::1",
            "*.example",
        ] {
            let refused = issue(&authority, &hosts(&[wrong]), Duration::from_hours(1), NOW);
            assert!(refused.is_err(), "{wrong}");
        }
        assert!(matches!(
            issue(&authority, &[], Duration::from_hours(1), NOW),
            Err(AuthorityError::NoHosts)
        ));
        assert!(may_sign(&hosts(&["home.example"]), "127.0.0.1"));
        assert!(may_sign(&hosts(&["home.example"]), "fd12::1"));
    }

    #[test]
    fn clients_hold_it_to_its_domains_even_where_its_key_is_lost() {
        use rustls::pki_types::ServerName;
        use rustls::{ClientConfig, RootCertStore};
        let authority = authority();
        // Signed past our own check.
        let key = KeyPair::generate().expect("key");
        let signer = KeyPair::from_pem(&authority.key.0).expect("key");
        let issuer = Issuer::from_ca_cert_pem(&authority.certificate, signer).expect("issuer");
        let mut parameters =
            CertificateParams::new(vec!["bank.example".to_owned()]).expect("names");
        (parameters.not_before, parameters.not_after) = validity(NOW, Duration::from_hours(24));
        let stolen = parameters.signed_by(&key, &issuer).expect("signed");
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.certificate.as_bytes()).expect("PEM");
        roots.add(root).expect("a root");
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            std::sync::Arc::new(roots),
            provider,
        )
        .build()
        .expect("a verifier");
        let at =
            rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_millis(NOW.as_millis()));
        let verify = |der: &CertificateDer<'_>, name: &str| {
            use rustls::client::danger::ServerCertVerifier;
            let name = ServerName::try_from(name.to_owned()).expect("a name");
            verifier.verify_server_cert(der, &[], &name, &[], at)
        };
        assert!(verify(stolen.der(), "bank.example").is_err());
        let own = issue(
            &authority,
            &hosts(&["a.home.example"]),
            Duration::from_hours(1),
            NOW,
        );
        let own = own.expect("signed").certificate;
        let own = CertificateDer::from_pem_slice(own.as_bytes()).expect("PEM");
        verify(&own, "a.home.example").expect("trusted");
        let _ = ClientConfig::builder_with_provider;
    }
}
