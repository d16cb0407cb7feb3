//! Why no source gave credentials: what an operator must act on, in words, and what may pass.

use std::error::Error as StdError;
use std::io;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use claviger_provider_api::foreign::causes;
use claviger_provider_api::{Cause, ErrorKind};

use crate::answer::{Answer, Verdict};
use crate::credentials::NotInFile;

/// Variables that name a file with a token.
const TOKEN_FILES: [&str; 2] =
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];

/// What the SDK's source of credentials in containers says, before the status.
const AGENT_ANSWERED: &str = "Non-success status from HTTP credential provider: StatusCode(";

/// What the SDK's source of credentials in virtual machines says when nothing is there.
const NO_METADATA: &str = "could not communicate with IMDS";

/// What it means that there are no credentials to sign with, and what to do, if that is known. None
/// for an error that is about something else.
pub(crate) fn judge(error: &(dyn StdError + 'static)) -> Option<(Verdict, String)> {
    // A profile that assumes a role puts its source's error into one of its own.
    let innermost = causes(error).filter_map(|cause| cause.downcast_ref()).last()?;
    let operator = |advice: &str| {
        Some((Verdict::operator(Some(Cause::CredentialsRefused)), advice.to_owned()))
    };
    match innermost {
        CredentialsError::CredentialsNotLoaded(_) if says(error, NO_METADATA) => {
            Some(without_metadata())
        }
        CredentialsError::CredentialsNotLoaded(_) => operator(
            "no source has credentials: look at `profile` and at AWS's shared files, or set \
             `credentials`",
        ),
        CredentialsError::InvalidConfiguration(_) => {
            let of_file = causes(innermost).any(<dyn StdError>::is::<NotInFile>);
            let cause = if of_file { Cause::SecretFile } else { Cause::CredentialsRefused };
            Some((Verdict::operator(Some(cause)), String::new()))
        }
        CredentialsError::ProviderError(_) => {
            let source = innermost.source()?;
            match of_file(source).or_else(|| of_sts(source)).or_else(|| of_agent(source)) {
                Some(advice) => operator(&advice),
                // The last source of the standard chain: no other one had any.
                None if says(source, "IMDS") => Some(without_metadata()),
                None => None,
            }
        }
        _ => None,
    }
}

/// No other source has credentials, and the last one may be reached again.
fn without_metadata() -> (Verdict, String) {
    let verdict =
        Verdict { kind: ErrorKind::Unavailable, cause: Some(Cause::Unreachable), renewable: false };
    (verdict, "a host without a role of AWS's needs `credentials` or `profile`".to_owned())
}

fn says(error: &(dyn StdError + 'static), text: &str) -> bool {
    causes(error).any(|cause| cause.to_string().contains(text))
}

/// A token that its file does not give. Errors of sockets come inside of others.
fn of_file(source: &(dyn StdError + 'static)) -> Option<String> {
    let lasts = matches!(
        source.downcast_ref::<io::Error>()?.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
    );
    let named = |name| Some(format!("{name}, which is {:?}", std::env::var(name).ok()?));
    let named: Vec<String> = TOKEN_FILES.into_iter().filter_map(named).collect();
    let places = if named.is_empty() {
        "the profile's `web_identity_token_file`".to_owned()
    } else {
        named.join(", and at ")
    };
    lasts.then(|| format!("a token that cannot be read gives no credentials: look at {places}"))
}

/// A role that STS does not give.
fn of_sts(source: &(dyn StdError + 'static)) -> Option<String> {
    let answer = answer::<AssumeRoleWithWebIdentityError>(source)
        .or_else(|| answer::<AssumeRoleError>(source))?;
    let verdict = answer.verdict();
    // IDPCommunicationError: STS could not reach the issuer of the token.
    let lasts = (verdict.kind == ErrorKind::OperatorNeeded || verdict.renewable)
        && answer.code != Some("IDPCommunicationError");
    lasts.then(|| {
        format!(
            "STS gives no credentials ({}, HTTP {}): look at the role and its trust policy, at the \
             token or the access key that asks for it, and at this host's clock",
            answer.code.unwrap_or("no code"),
            answer.status
        )
    })
}

fn answer<'a, E>(source: &'a (dyn StdError + 'static)) -> Option<Answer<'a>>
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match source.downcast_ref::<SdkError<E, HttpResponse>>()? {
        SdkError::ServiceError(answer) => Some(Answer::of(answer.err(), answer.raw())),
        _ => None,
    }
}

/// The agent of ECS or EKS, which answers for the role of a container.
fn of_agent(source: &(dyn StdError + 'static)) -> Option<String> {
    let said = source.to_string();
    let status = said.strip_prefix(AGENT_ANSWERED)?.strip_suffix(')')?.parse().ok()?;
    (matches!(status, 400..=499) && !matches!(status, 408 | 429)).then(|| {
        format!(
            "the container's agent gives no credentials (HTTP {status}): look at \
             AWS_CONTAINER_CREDENTIALS_FULL_URI or AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, at the \
             authorization token, and at the container's role"
        )
    })
}
