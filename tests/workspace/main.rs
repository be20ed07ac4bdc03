//! Documents and files of the repository that must not go stale.

mod options_page;
mod platforms_page;
