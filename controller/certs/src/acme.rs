//! Ordering certificates from an authority (ACME, RFC 8555): single calls, each of which may be made again.
//!
//! What has to outlive a crash is the caller's to keep: the account's key before the account is made, the
//! order's URL and the certificate's key before anything comes of them. The authority is asked how an order
//! stands; nothing here remembers it.

mod http;

use beanpole_protocol::api::Proof;
use beanpole_protocol::tls::{PrivateKey, is_name};
use http::Https;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier, Key, NewOrder,
    OrderStatus,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use ring::digest::{SHA256, digest};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::Duration;

/// How often a call is made again whose nonce was not taken. Each makes three attempts of its own with the
/// nonce that came with the refusal (RFC 8555, section 6.5); an authority of many machines, or one that refuses
/// some on purpose as Pebble does, may want more than that.
const FRESH_NONCES: usize = 5;

/// How long is asked for an authority's terms, which are for a hint alone.
const TERMS_LIMIT: Duration = Duration::from_secs(5);
/// How much of what an authority says is repeated, in characters.
const LONGEST_SAID: usize = 600;

/// Let's Encrypt's directory.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

const fn kind_of(proof: Proof) -> ChallengeType {
    match proof {
        Proof::Http01 => ChallengeType::Http01,
        Proof::TlsAlpn01 => ChallengeType::TlsAlpn01,
        Proof::Dns01 => ChallengeType::Dns01,
    }
}

/// What an authority wants to see for one hostname.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The hostname, without `*.`.
    pub host: String,
    /// The challenge's token.
    pub token: String,
    /// The token with the account's thumbprint.
    pub answer: String,
    /// The answer as it stands in a record of the DNS.
    pub dns_value: String,
}

impl Challenge {
    /// The certificate that is shown to an authority that asks by TLS-ALPN (RFC 8737, section 3), and its key;
    /// PEM.
    pub fn certificate(&self) -> Result<(String, PrivateKey), AcmeError> {
        let failed = |error: rcgen::Error| AcmeError::own(format!("it cannot be proved: {error}"));
        let mut parameters = CertificateParams::new(vec![self.host.clone()]).map_err(failed)?;
        let proof = digest(&SHA256, self.answer.as_bytes());
        parameters.custom_extensions = vec![CustomExtension::new_acme_identifier(proof.as_ref())];
        let key = KeyPair::generate().map_err(failed)?;
        let made = parameters.self_signed(&key).map_err(failed)?;
        Ok((made.pem(), PrivateKey(key.serialize_pem())))
    }
}

/// How an order stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Hostnames have to be proved; those whose proof the authority has not begun to look at are listed.
    Pending(Vec<Challenge>),
    /// The authority looks, or signs.
    Working,
    /// All is proved: what is to be signed can be sent.
    Ready,
    /// The certificate is there.
    Signed,
    /// It came to nothing.
    Over(AcmeError),
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The authority could not be reached, or is in trouble itself.
    Unreachable,
    /// It was asked too often.
    Limited,
    /// It does not know the account.
    NoAccount,
    /// It does not know the order.
    NoOrder,
    /// It did not take the nonce of a request, several times in a row; nothing came of the request.
    Nonce,
    /// It refuses.
    Refused,
    /// It is a matter of this machine.
    Own,
}

impl Kind {
    /// Whether it goes by without anybody's doing: the same may be tried again soon.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Unreachable | Self::Nonce)
    }
}

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct AcmeError {
    /// What kind it is.
    pub kind: Kind,
    /// Why, for people, as the end of a sentence.
    pub why: String,
    /// What to do about it, as a sentence; empty where nothing is known.
    pub advice: &'static str,
    /// How long the authority wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl AcmeError {
    fn own(why: String) -> Self {
        Self {
            kind: Kind::Own,
            why,
            advice: "",
            retry_after: None,
        }
    }
}

/// An authority's address and whom to trust to be it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The URL of its directory.
    pub url: String,
    /// Who signs its own certificate, PEM, besides the public authorities.
    pub roots: Option<String>,
}

/// Where an authority's terms of service are, as its directory says (RFC 8555, section 7.1.1); none where it does not say, or
/// cannot be asked.
pub async fn terms(directory: &Directory) -> Option<String> {
    let http = Https::new(directory).ok()?;
    let asked = tokio::time::timeout(TERMS_LIMIT, http.json(&directory.url)).await;
    let said = asked.ok()?.ok()?;
    let url = said.get("meta")?.get("termsOfService")?.as_str()?;
    let plain = url.len() <= LONGEST_SAID && url.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| url.to_owned())
}

/// A new account's key, as text to be sealed.
pub fn new_account_key() -> Result<String, AcmeError> {
    let (_, der) = Key::generate_pkcs8()
        .map_err(|error| AcmeError::own(format!("no key can be made: {error}")))?;
    Ok(hex::encode(der.secret_pkcs8_der()))
}

fn account_key(text: &str) -> Result<PrivatePkcs8KeyDer<'static>, AcmeError> {
    let der =
        hex::decode(text).map_err(|_| AcmeError::own("the account's key is damaged".to_owned()))?;
    Ok(PrivatePkcs8KeyDer::from(der))
}

/// A new certificate's key, PEM.
pub fn new_key() -> Result<PrivateKey, AcmeError> {
    let key = KeyPair::generate()
        .map_err(|error| AcmeError::own(format!("no key can be made: {error}")))?;
    Ok(PrivateKey(key.serialize_pem()))
}

/// Makes `call` again while a nonce is all that stands in its way.
async fn with_fresh_nonces<T, F: Future<Output = Result<T, AcmeError>>>(
    call: impl Fn() -> F,
) -> Result<T, AcmeError> {
    for _ in 1..FRESH_NONCES {
        match call().await {
            Err(error) if error.kind == Kind::Nonce => {}
            other => return other,
        }
    }
    call().await
}

/// An account in use.
pub struct Session {
    account: Account,
    http: Https,
}

impl Session {
    /// Makes the account of `key`, or finds it where there is one. Gives its URL.
    pub async fn register(
        directory: &Directory,
        key: &str,
        email: Option<&str>,
    ) -> Result<String, AcmeError> {
        let http = Https::new(directory)?;
        let http = &http;
        with_fresh_nonces(|| async move {
            let der = account_key(key)?;
            let known = Key::from_pkcs8_der(der.clone_key())
                .map_err(|error| AcmeError::own(error.to_string()))?;
            let (account, _) = Account::builder_with_http(Box::new(http.clone()))
                .create_from_key((known, PrivateKeyDer::Pkcs8(der)), directory.url.clone())
                .await
                .map_err(|error| read(error, http))?;
            if let Some(email) = email {
                account
                    .update_contacts(&[&format!("mailto:{email}")])
                    .await
                    .map_err(|error| read(error, http))?;
            }
            Ok(account.id().to_owned())
        })
        .await
    }

    /// Uses the account of `key`, which has this URL.
    pub async fn open(directory: &Directory, key: &str, url: &str) -> Result<Self, AcmeError> {
        let http = Https::new(directory)?;
        let account = Account::builder_with_http(Box::new(http.clone()))
            .from_parts(url.to_owned(), account_key(key)?, directory.url.clone())
            .await
            .map_err(|error| read(error, &http))?;
        Ok(Self { account, http })
    }

    fn read(&self, error: Error) -> AcmeError {
        read(error, &self.http)
    }

    /// Orders a certificate for `hosts`; gives the order's URL.
    pub async fn order(&self, hosts: &[String]) -> Result<String, AcmeError> {
        let names: Vec<Identifier> = hosts.iter().cloned().map(Identifier::Dns).collect();
        let names = names.as_slice();
        with_fresh_nonces(|| async move {
            let order = self.account.new_order(&NewOrder::new(names)).await;
            Ok(order.map_err(|error| self.read(error))?.url().to_owned())
        })
        .await
    }

    /// How an order stands.
    pub async fn look(&self, url: &str, proof: Proof) -> Result<Standing, AcmeError> {
        with_fresh_nonces(|| self.look_once(url, proof)).await
    }

    async fn look_once(&self, url: &str, proof: Proof) -> Result<Standing, AcmeError> {
        let mut order = self.order_at(url).await?;
        match order.state().status {
            OrderStatus::Ready => return Ok(Standing::Ready),
            OrderStatus::Processing => return Ok(Standing::Working),
            OrderStatus::Valid => return Ok(Standing::Signed),
            OrderStatus::Pending | OrderStatus::Invalid => {}
        }
        let over = order.state().status == OrderStatus::Invalid;
        let said = order.state().error.clone();
        let mut open = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut one = next.map_err(|error| self.read(error))?;
            let host = match one.identifier().identifier {
                Identifier::Dns(name) => name.clone(),
                other => format!("{other:?}"),
            };
            if one.status == AuthorizationStatus::Invalid {
                let mut tried = one.challenges.iter();
                let why = tried.find_map(|challenge| challenge.error.clone());
                let why = why.or(said).map_or_else(
                    || AcmeError {
                        kind: Kind::Refused,
                        why: "the authority does not say why".to_owned(),
                        advice: "",
                        retry_after: None,
                    },
                    |problem| self.read(Error::Api(problem)),
                );
                return Ok(Standing::Over(AcmeError {
                    why: format!("proof of {host} by {proof} failed: {}", why.why),
                    ..why
                }));
            }
            if one.status != AuthorizationStatus::Pending {
                continue;
            }
            let Some(challenge) = one.challenge(kind_of(proof)) else {
                return Ok(Standing::Over(AcmeError {
                    kind: Kind::Refused,
                    why: format!("the authority does not take {proof} for {host}"),
                    advice: "Choose another proof; names with * take dns-01 alone.",
                    retry_after: None,
                }));
            };
            if challenge.status == ChallengeStatus::Pending {
                let answer = challenge.key_authorization();
                open.push(Challenge {
                    host,
                    token: challenge.token.clone(),
                    answer: answer.as_str().to_owned(),
                    dns_value: answer.dns_value(),
                });
            }
        }
        if over {
            let problem = said.map(|problem| self.read(Error::Api(problem)));
            return Ok(Standing::Over(problem.unwrap_or_else(|| AcmeError {
                kind: Kind::Refused,
                why: "the authority has given the order up and does not say why".to_owned(),
                advice: "",
                retry_after: None,
            })));
        }
        Ok(if open.is_empty() {
            Standing::Working
        } else {
            Standing::Pending(open)
        })
    }

    /// Tells the authority that everything can be looked at.
    pub async fn tell_ready(&self, url: &str, proof: Proof) -> Result<(), AcmeError> {
        with_fresh_nonces(|| self.tell_ready_once(url, proof)).await
    }

    async fn tell_ready_once(&self, url: &str, proof: Proof) -> Result<(), AcmeError> {
        let mut order = self.order_at(url).await?;
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut one = next.map_err(|error| self.read(error))?;
            if one.status != AuthorizationStatus::Pending {
                continue;
            }
            if let Some(mut challenge) = one.challenge(kind_of(proof))
                && challenge.status == ChallengeStatus::Pending
            {
                challenge
                    .set_ready()
                    .await
                    .map_err(|error| self.read(error))?;
            }
        }
        Ok(())
    }

    /// Has the authority sign `key` for `hosts`.
    pub async fn finalize(
        &self,
        url: &str,
        hosts: &[String],
        key: &PrivateKey,
    ) -> Result<(), AcmeError> {
        let failed =
            |error: rcgen::Error| AcmeError::own(format!("no request can be made: {error}"));
        let mut parameters = CertificateParams::new(hosts.to_vec()).map_err(failed)?;
        parameters.distinguished_name = DistinguishedName::new();
        let pair = KeyPair::from_pem(&key.0).map_err(failed)?;
        let request = parameters.serialize_request(&pair).map_err(failed)?;
        let request = &request;
        with_fresh_nonces(|| async move {
            let mut order = self.order_at(url).await?;
            let sent = order.finalize_csr(request.der()).await;
            sent.map_err(|error| self.read(error))
        })
        .await
    }

    /// The chain that was signed, PEM; none while it is not there yet.
    pub async fn download(&self, url: &str) -> Result<Option<String>, AcmeError> {
        with_fresh_nonces(|| async move {
            let mut order = self.order_at(url).await?;
            order.certificate().await.map_err(|error| self.read(error))
        })
        .await
    }

    async fn order_at(&self, url: &str) -> Result<instant_acme::Order, AcmeError> {
        let order = self.account.order(url.to_owned()).await;
        order.map_err(|error| self.read(error))
    }
}

/// Why nothing can be ordered for a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// None is given.
    #[error("No hostname is given.")]
    None,
    /// It is no name that anybody could prove.
    #[error("`{0}` is no full hostname in lower case, such as shop.example.com.")]
    NoName(String),
    /// It is an IP address.
    #[error("`{0}` is an address, and certificates are ordered for hostnames.")]
    Address(String),
    /// It is a wildcard, and the proof is for single names.
    #[error("`{0}` stands for many names: those are proved by dns-01 alone.")]
    Wildcard(String),
}

impl HostError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::None | Self::NoName(_) => {
                "Give whole names of the public DNS. For others, the controller's own authority signs: --by-ca instead of \
                 --acme, once there is one (beanpole ca init)."
                    .to_owned()
            }
            Self::Address(address) => format!(
                "Give a hostname that leads there. For something else than load balancers, the controller's own authority \
                 signs for private addresses: beanpole ca issue {address}"
            ),
            Self::Wildcard(_) => "Prove it so: --proof dns-01 --dns-hook NAME".to_owned(),
        }
    }
}

/// Refuses hosts that no authority could sign for.
pub fn check_hosts(hosts: &[String], proof: Proof) -> Result<(), HostError> {
    if hosts.is_empty() {
        return Err(HostError::None);
    }
    for host in hosts {
        if host.parse::<std::net::IpAddr>().is_ok() {
            return Err(HostError::Address(host.clone()));
        }
        if !is_name(host) || host.chars().any(|c| c.is_ascii_uppercase()) || !host.contains('.') {
            return Err(HostError::NoName(beanpole_protocol::ids::shown(host)));
        }
        if host.starts_with("*.") && proof != Proof::Dns01 {
            return Err(HostError::Wildcard(host.clone()));
        }
    }
    Ok(())
}

/// What an authority says, as a part of a line: without what would break it, and not long.
fn one_line(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let words: Vec<&str> = plain.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST_SAID) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn read(error: Error, http: &Https) -> AcmeError {
    let retry_after = http.take_retry_after();
    let with = |kind, why, advice| AcmeError {
        kind,
        why,
        advice,
        retry_after,
    };
    match error {
        Error::Api(problem) => {
            let name = problem.r#type.clone().unwrap_or_default();
            let name = one_line(name.rsplit(':').next().unwrap_or_default());
            let (kind, advice) = meaning(&name, problem.status);
            let mut why = problem.detail.clone().unwrap_or_else(|| name.clone());
            for sub in &problem.subproblems {
                why.push_str(&format!("; {}", sub.detail.as_deref().unwrap_or_default()));
            }
            let why = one_line(&why).trim_end_matches('.').to_owned();
            with(
                kind,
                if name.is_empty() {
                    why
                } else {
                    format!("{why} ({name})")
                },
                advice,
            )
        }
        Error::Crypto | Error::KeyRejected => with(
            Kind::Own,
            format!("the account's key cannot be used: {error}"),
            "",
        ),
        Error::InvalidUri(_) => with(
            Kind::Own,
            format!("its URL is none: {error}"),
            "Give the URL of the authority's directory.",
        ),
        Error::Json(error) => with(
            Kind::Unreachable,
            format!("what answers is no ACME directory or broke off: {error}"),
            "Check the URL of the directory.",
        ),
        error => {
            let mut why = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !why.contains(&cause_text) {
                    why.push_str(&format!(": {cause_text}"));
                }
                source = cause.source();
            }
            with(
                Kind::Unreachable,
                why,
                "Check the URL of the directory, that this machine reaches it, and --root where its own certificate is not public.",
            )
        }
    }
}

/// What an authority's word for an error means, and what to do (RFC 8555, section 6.7).
fn meaning(name: &str, status: Option<u16>) -> (Kind, &'static str) {
    match name {
        "rateLimited" => (
            Kind::Limited,
            "It is tried again when the authority allows it. Try things out with its staging directory.",
        ),
        "accountDoesNotExist" => (
            Kind::NoAccount,
            "The account is made anew with the next attempt.",
        ),
        "connection" => (
            Kind::Refused,
            "The hostname has to lead to the load balancer from the internet: check the DNS, and that ports 80 (http-01) and 443 (tls-alpn-01) are open and forwarded.",
        ),
        "dns" => (
            Kind::Refused,
            "Check the records of the hostname at its DNS provider (A, AAAA, CAA; TXT for dns-01).",
        ),
        "unauthorized" | "incorrectResponse" => (
            Kind::Refused,
            "Something else answered: check that the hostname leads to this load balancer, by IPv6 (AAAA) too, and that no other proxy or redirect is in front.",
        ),
        "tls" => (
            Kind::Refused,
            "Port 443 has to lead to this load balancer without another TLS endpoint in front; or prove it by http-01.",
        ),
        "caa" => (
            Kind::Refused,
            "The CAA records of the domain do not allow this authority: change them, or use another one.",
        ),
        "rejectedIdentifier" | "unsupportedIdentifier" => (
            Kind::Refused,
            "This authority does not sign for that name: use another one, or your own (beanpole ca).",
        ),
        "userActionRequired" => (
            Kind::Refused,
            "The authority wants something done by hand first, such as agreeing to new terms.",
        ),
        "externalAccountRequired" => (
            Kind::Refused,
            "This authority takes accounts of its customers alone, which is not supported: use another one.",
        ),
        "invalidContact" | "unsupportedContact" => (
            Kind::Refused,
            "Give another address, or none: --email ADDRESS",
        ),
        "badCSR" | "badPublicKey" | "badSignatureAlgorithm" | "malformed" => (Kind::Refused, ""),
        "serverInternal" => (Kind::Unreachable, ""),
        "badNonce" => (Kind::Nonce, ""),
        _ if status == Some(404) => (Kind::NoOrder, ""),
        _ if status.is_some_and(|status| status >= 500) => (Kind::Unreachable, ""),
        _ => (Kind::Refused, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_can_sign_are_refused_before_anybody_is_asked() {
        let hosts = |host: &str| vec![host.to_owned()];
        assert!(check_hosts(&hosts("shop.example.com"), Proof::Http01).is_ok());
        assert!(check_hosts(&hosts("*.example.com"), Proof::Dns01).is_ok());
        for (host, proof) in [
            ("*.example.com", Proof::Http01),
            ("localhost", Proof::Http01),
            ("Shop.example.com", Proof::Http01),
            ("a b.example", Proof::Dns01),
        ] {
            assert!(check_hosts(&hosts(host), proof).is_err(), "{host}");
        }
        assert!(check_hosts(&[], Proof::Http01).is_err());
        for (host, wrong) in [
            ("127.0.0.1", "is an address"),
            ("::1", "is an address"),
            ("foo_bar", "is no full hostname"),
            ("*.example.com", "proved by dns-01"),
        ] {
            let refused = check_hosts(&hosts(host), Proof::Http01).expect_err("refused");
            assert!(refused.to_string().contains(wrong), "{refused}");
            let speaks_of_wildcards = refused.hint().contains("dns-01");
            assert_eq!(speaks_of_wildcards, host.starts_with('*'), "{host}");
        }
    }

    #[test]
    fn what_an_authority_says_is_one_line() {
        assert_eq!(
            one_line("two\nlines\r\n\t of it\u{1b}[1m."),
            "two lines of it [1m."
        );
        assert_eq!(
            one_line(&"x".repeat(2_000)).chars().count(),
            LONGEST_SAID + 1
        );
    }

    #[test]
    fn a_challenge_by_tls_shows_its_proof() {
        let challenge = Challenge {
            host: "shop.example.com".to_owned(),
            token: "t".to_owned(),
            answer: "t.thumb".to_owned(),
            dns_value: String::new(),
        };
        let (chain, key) = challenge.certificate().expect("made");
        assert!(chain.contains("BEGIN CERTIFICATE"));
        assert!(key.0.contains("PRIVATE KEY"));
    }
}
