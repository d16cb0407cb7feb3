//! `users list`, `show` and `remove`, for an operator.

use crate::cli::{Exit, Failure, Users};
use crate::config::Config;
use crate::store::{Form, Store, StoreError, Timestamp};
use crate::user::UserId;

/// Runs one of them.
pub async fn run(config: &Config, command: Users) -> Result<(), Failure> {
    let store = Store::open(&config.database);
    let outcome = match command {
        Users::List => list(&store).await,
        Users::Show { user } => show(&store, user).await,
        Users::Remove { user, yes } => remove(config, &store, user, yes).await,
    };
    store.close().await;
    outcome
}

async fn list(store: &Store) -> Result<(), Failure> {
    for user in store.ids().await? {
        show(store, user).await?;
    }
    Ok(())
}

/// The id, the form, and the times of enrolment, change and last access, separated by tabs.
async fn show(store: &Store, user: UserId) -> Result<(), Failure> {
    let Some(row) = store.user(user).await? else { return Err(unknown(user)) };
    let form = match store.key(user).await {
        Ok(Some(key)) if key.form == Form::Shared => "shared-key",
        Ok(Some(_)) => "per-user",
        Ok(None) => return Err(unknown(user)),
        Err(StoreError::Content(_)) => "no key",
        Err(error) => return Err(error.into()),
    };
    let time = |time: Option<&Timestamp>| time.map_or_else(|| "-".to_owned(), Timestamp::iso);
    let (revised, accessed) = (time(row.revised.as_ref()), time(row.accessed.as_ref()));
    println!("{user}\t{form}\t{}\t{revised}\t{accessed}", row.created.iso());
    Ok(())
}

async fn remove(config: &Config, store: &Store, user: UserId, yes: bool) -> Result<(), Failure> {
    if !yes {
        let message = format!(
            "if user {user} has a vault, it cannot be opened any more once the key is removed; if the \
             identity server does not know this key, say so with --yes"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let was_enrolled = match &config.approvals {
        Some(_) => {
            store.prepare_approvals().await?;
            store.withdraw(user).await?
        }
        None => false,
    };
    if store.remove(user).await? || was_enrolled {
        println!("user {user} was removed");
        Ok(())
    } else {
        Err(unknown(user))
    }
}

fn unknown(user: UserId) -> Failure {
    Failure::new(Exit::Failure, format!("there is no user {user}"))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(_) => Self::new(Exit::Unavailable, error),
            StoreError::Content(_) => Self::new(Exit::Failure, error),
        }
    }
}
