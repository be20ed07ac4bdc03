//! Pages that clients get in place of answers: what callers give is checked here.

use beanpole_engine::{Closing, OwnPage};
use beanpole_protocol::Digest;
use beanpole_protocol::api::SetMaintenance;
use beanpole_protocol::content::LARGEST_PAGE;
use beanpole_protocol::problem::Problem;
use sha2::{Digest as _, Sha256};

/// After how many seconds clients of a closed environment may try again, unless told otherwise.
const RETRY_AFTER_S: u32 = 300;
/// The longest such time: a day.
const LONGEST_RETRY_AFTER_S: u32 = 86_400;
/// The most networks whose clients get to a closed environment: each of its requests is held against them.
const MOST_ALLOWED: usize = 100;

/// A page that somebody gives.
pub(crate) fn own_page(html: String) -> Result<OwnPage, Problem> {
    if html.len() > LARGEST_PAGE {
        let text = format!(
            "The page has {} bytes, and may have {LARGEST_PAGE}.",
            html.len()
        );
        return Err(Problem::invalid("page-too-large", text)
            .hint("Have it load its images and styles from somewhere else."));
    }
    if html.trim().is_empty() {
        return Err(Problem::invalid("invalid-page", "The page is empty."));
    }
    let digest = Digest::new(hex::encode(Sha256::digest(html.as_bytes())))
        .expect("SHA-256 in hexadecimal is a digest");
    Ok(OwnPage { digest, html })
}

/// How an environment is to be closed.
pub(crate) fn closing(asked: SetMaintenance) -> Result<Closing, Problem> {
    let retry_after_s = asked.retry_after_s.unwrap_or(RETRY_AFTER_S);
    if !(1..=LONGEST_RETRY_AFTER_S).contains(&retry_after_s) {
        let text = format!(
            "`retry_after_s` is {retry_after_s}, and must be 1 to {LONGEST_RETRY_AFTER_S}."
        );
        return Err(Problem::invalid("invalid-retry-after", text));
    }
    if asked.allow.len() > MOST_ALLOWED {
        let text = format!(
            "There are {} networks, and may be {MOST_ALLOWED}.",
            asked.allow.len()
        );
        return Err(Problem::invalid("too-many-networks", text));
    }
    Ok(Closing {
        page: asked.page.map(own_page).transpose()?,
        allow: asked.allow,
        retry_after_s,
    })
}
