use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa, KeyPair,
    date_time_ymd,
};

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

type Signer = CertifiedIssuer<'static, KeyPair>;

fn parameters(names: &[&str], common: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).expect("names");
    parameters
        .distinguished_name
        .push(DnType::CommonName, common);
    parameters.not_before = date_time_ymd(2026, 1, 1);
    parameters.not_after = date_time_ymd(2027, 1, 1);
    parameters
}

fn authority_parameters(common: &str) -> CertificateParams {
    let mut parameters = parameters(&[], common);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters
}

fn root() -> Signer {
    let key = KeyPair::generate().expect("key");
    CertifiedIssuer::self_signed(authority_parameters("Root"), key).expect("root")
}

fn intermediate(root: &Signer, common: &str) -> Signer {
    let key = KeyPair::generate().expect("key");
    CertifiedIssuer::signed_by(authority_parameters(common), key, root).expect("intermediate")
}

fn leaf(signer: &Signer, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().expect("key");
    let mut parameters = parameters(&["Shop.example.com", "*.example.com"], "shop");
    change(&mut parameters);
    let made = parameters.signed_by(&key, signer).expect("leaf");
    (made.pem(), key.serialize_pem())
}

fn look(chain: &str, key: &str) -> Result<Inspected, Wrong> {
    inspect(chain, key, Leave::default(), NOW)
}

fn code(chain: &str, key: &str) -> &'static str {
    look(chain, key).expect_err("wrong").code()
}

#[test]
fn a_good_chain_is_read_whatever_stands_between() {
    let (root, middle) = {
        let root = root();
        let middle = intermediate(&root, "Middle");
        (root, middle)
    };
    let (own, key) = leaf(&middle, |_| {});
    let text = format!(
        "subject=shop\n{own}\n\nissuer=Middle\n{}{}",
        middle.pem(),
        root.pem()
    );
    let seen = look(&text, &format!("junk\n{key}")).expect("good");
    assert_eq!(seen.facts.names, ["*.example.com", "shop.example.com"]);
    assert_eq!(seen.facts.issuer, "Middle");
    assert_eq!(seen.facts.not_after.to_string(), "2027-01-01T00:00:00.000Z");
    assert!(!seen.chain.contains("subject="));
    assert_eq!(seen.chain.matches("BEGIN CERTIFICATE").count(), 3);
    assert_eq!(facts(&seen.chain).expect("facts"), seen.facts);
    assert!(
        !format!("{seen:?}").contains("PRIVATE"),
        "the key is not printed"
    );
}

#[test]
fn a_key_that_is_wrong_is_told_apart() {
    let root = root();
    let (own, key) = leaf(&root, |_| {});
    let (_, other) = leaf(&root, |_| {});
    assert_eq!(code(&own, &other), "private-key-does-not-match");
    assert_eq!(code(&own, "nothing"), "no-private-key");
    assert_eq!(code(&own, &own), "no-private-key");
    assert_eq!(code(&own, &format!("{key}{other}")), "several-private-keys");
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    assert_eq!(code(&own, &encrypted), "private-key-encrypted");
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----";
    assert_eq!(code(&own, old), "private-key-encrypted");
    let broken = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----";
    assert_eq!(code(&own, broken), "private-key-unusable");
}

#[test]
fn a_chain_that_is_wrong_is_told_apart() {
    let root = root();
    let middle = intermediate(&root, "Middle");
    let other = intermediate(&root, "Other");
    let (own, key) = leaf(&middle, |_| {});
    let middle_pem = middle.pem();
    assert_eq!(code("", &key), "no-certificate");
    assert_eq!(code(&key, &key), "no-certificate");
    assert_eq!(
        code(&format!("{middle_pem}{own}"), &key),
        "chain-in-wrong-order"
    );
    let text = format!("{own}{}{middle_pem}", root.pem());
    assert_eq!(code(&text, &key), "chain-in-wrong-order");
    assert_eq!(code(&format!("{own}{}", other.pem()), &key), "chain-broken");
    assert_eq!(code(&own.repeat(11), &key), "chain-too-long");
    let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
    assert_eq!(
        code(&format!("{own}{garbled}"), &key),
        "certificate-unreadable"
    );
    let own_key = root.key().serialize_pem();
    assert_eq!(code(&root.pem(), &own_key), "certificate-of-authority");
}

/// `pem` without its line `number`, counted from 0.
fn without_line(pem: &str, number: usize) -> String {
    let lines = pem.lines().enumerate();
    let kept: Vec<_> = lines
        .filter(|(at, _)| *at != number)
        .map(|(_, line)| line)
        .collect();
    kept.join("\n")
}

#[test]
fn what_was_copied_in_part_is_told_as_such() {
    let root = root();
    let (own, key) = leaf(&root, |_| {});
    let end = own.trim_end().lines().count() - 1;
    for cut in [&own[..own.len() / 2], &without_line(&own, end)] {
        assert_eq!(code(cut, &key), "pem-cut-short");
        assert_eq!(code(&format!("{own}{cut}"), &key), "pem-cut-short");
        assert_eq!(code(&format!("{cut}\n{own}"), &key), "pem-cut-short");
    }
    let said = look(&own[..own.len() / 2], &key)
        .expect_err("cut")
        .to_string();
    assert!(
        said.starts_with("Certificate 1 of the chain is cut short"),
        "{said}"
    );
    assert_eq!(code(&own, &key[..key.len() / 2]), "pem-cut-short");
    let said = look(&without_line(&own, 2), &key)
        .expect_err("a gap")
        .to_string();
    assert!(
        said.contains("48 of its ") && said.contains("bytes are missing"),
        "{said}"
    );
    let said = look(&own.replacen('M', "!", 1), &key)
        .expect_err("odd")
        .to_string();
    assert!(said.ends_with("its lines are no base64."), "{said}");
    let said = look(&own, &without_line(&key, 1))
        .expect_err("a gap")
        .to_string();
    assert!(!said.contains("Error"), "{said}");
}

#[test]
fn a_certificate_that_names_where_its_signer_is_needs_that_one() {
    let root = root();
    let middle = intermediate(&root, "Middle");
    // Authority information access with one URL of the issuer's certificate (RFC 5280, section 4.2.2.1).
    let access =
        b"\x30\x1a\x30\x18\x06\x08\x2b\x06\x01\x05\x05\x07\x30\x02\x86\x0chttp://a.b/c".to_vec();
    let (own, key) = leaf(&middle, |parameters| {
        let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access);
        parameters.custom_extensions = vec![extension];
    });
    assert_eq!(code(&own, &key), "chain-incomplete");
    let leave = Leave { incomplete: true };
    inspect(&own, &key, leave, NOW).expect("as asked");
    look(&format!("{own}{}", middle.pem()), &key).expect("complete but for the root");
    let (plain, key) = leaf(&middle, |_| {});
    look(&plain, &key).expect("nothing speaks for intermediate ones");
}

#[test]
fn a_certificate_is_good_for_its_time_and_names() {
    let root = root();
    let (old, key) = leaf(&root, |one| one.not_after = date_time_ymd(2026, 2, 1));
    assert_eq!(code(&old, &key), "certificate-expired");
    let (early, key) = leaf(&root, |one| one.not_before = date_time_ymd(2026, 12, 1));
    assert_eq!(code(&early, &key), "certificate-not-yet-valid");
    let (nameless, key) = leaf(&root, |one| one.subject_alt_names.clear());
    assert_eq!(code(&nameless, &key), "certificate-without-names");
    let (address, key) = leaf(&root, |one| {
        one.subject_alt_names = vec![rcgen::SanType::IpAddress([192, 0, 2, 1].into())];
    });
    assert_eq!(code(&address, &key), "certificate-without-names");
}

#[test]
fn an_authority_is_one_that_may_sign_others_or_signed_itself() {
    let root = root();
    let (own, _) = leaf(&root, |_| {});
    let refused = authorities(&own).expect_err("a leaf");
    assert_eq!(refused.code(), "certificate-of-no-authority");
    assert_eq!(authorities(&root.pem()).map(|all| all.len()), Ok(1));
    let key = KeyPair::generate().expect("a key");
    let alone = parameters(&["client.example"], "Client").self_signed(&key);
    assert_eq!(
        authorities(&alone.expect("signed").pem()).map(|all| all.len()),
        Ok(1)
    );
}

#[test]
fn what_is_wrong_comes_with_what_to_do() {
    let wrong = [
        Wrong::EncryptedKey,
        Wrong::Incomplete("Middle".to_owned()),
        Wrong::NoNames,
        Wrong::Expired(NOW),
    ];
    for one in wrong {
        assert!(one.to_string().ends_with('.'), "{one}");
        assert!(!one.hint().is_empty());
    }
}
