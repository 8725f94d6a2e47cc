//! `pgward check`: in the making.

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> super::Outcome {
    super::Outcome::WrongUse
}
