//! Requests of new devices: open, then decided once, then fetched once; erased when they have expired.

use sqlx::Row;

use super::super::{Store, StoreError, on};
use crate::user::UserId;

/// Open requests of all users at most; each has some two kilobytes.
const MOST_OPEN: i64 = 10_000;
/// Open requests of one kind for one e-mail at most.
const MOST_OF_ONE: i64 = 5;
/// How long it is known who decided what, in seconds: 90 days.
const HISTORY: i64 = 90 * 86_400;

/// Who is to approve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another device of the same user.
    Device,
    /// A person whom the issuer calls an approver.
    Admin,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not decided.
    Open,
    /// Decided, and not fetched yet.
    Approved,
    /// Refused by an approver.
    Denied,
    /// Approved, and given to the device.
    Fetched,
    /// Not fetched in time, or ended.
    Expired,
}

/// A new request.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// A UUID.
    pub id: String,
    /// None: no user is enrolled with the e-mail; the requester is not told.
    pub user: Option<UserId>,
    /// In the one spelling.
    pub email: String,
    /// Who is to approve.
    pub kind: Kind,
    /// Of the value that the device gets: a JWA name.
    pub algorithm: &'static str,
    /// SubjectPublicKeyInfo in Base64.
    pub public_key: String,
    /// SHA-256 in hexadecimal.
    pub code_hash: String,
    /// The phrase.
    pub fingerprint: String,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub expires: i64,
}

/// A stored request.
#[derive(Clone, Debug)]
pub struct Request {
    /// A UUID.
    pub id: String,
    /// None: no enrolled user.
    pub user: Option<UserId>,
    /// In the one spelling.
    pub email: String,
    /// Who is to approve.
    pub kind: Kind,
    /// A JWA name.
    pub algorithm: String,
    /// SubjectPublicKeyInfo in Base64; empty once it has ended.
    pub public_key: String,
    /// SHA-256 in hexadecimal; empty once it has ended.
    pub code_hash: String,
    /// The phrase.
    pub fingerprint: String,
    /// How often a wrong access code came.
    pub wrong: i64,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub expires: i64,
    /// Where it stands.
    pub state: State,
    /// What the device gets, in Base64.
    pub value: Option<String>,
    /// Seconds since 1970.
    pub decided: Option<i64>,
    /// Who decided.
    pub decided_by: Option<String>,
}

/// Whether a request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// Yes.
    Yes,
    /// There are too many that are open, for this e-mail or at all.
    TooMany,
}

/// `SELECT` of all columns, with what follows. Lists have 200 rows at most.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, user_id, email, kind, algorithm, public_key, code_hash, fingerprint, wrong, created, expires, state, value, decided, decided_by FROM claviger_auth_requests ",
            $rest
        )
    };
}

/// A request of a row with all columns.
macro_rules! request {
    ($row:expr) => {{
        let row = $row;
        let user: Option<String> = row.try_get(1)?;
        let (kind, state): (String, String) = (row.try_get(3)?, row.try_get(11)?);
        Request {
            id: row.try_get(0)?,
            user: user.as_deref().and_then(UserId::parse),
            email: row.try_get(2)?,
            kind: Kind::parse(&kind).unwrap_or(Kind::Admin),
            algorithm: row.try_get(4)?,
            public_key: row.try_get(5)?,
            code_hash: row.try_get(6)?,
            fingerprint: row.try_get(7)?,
            wrong: row.try_get(8)?,
            created: row.try_get(9)?,
            expires: row.try_get(10)?,
            state: State::parse(&state),
            value: row.try_get(12)?,
            decided: row.try_get(13)?,
            decided_by: row.try_get(14)?,
        }
    }};
}

impl Store {
    /// Stores a new request.
    pub async fn add_request(&self, new: &NewRequest) -> Result<Added, StoreError> {
        let of_one = self.words(
            "SELECT count(*) FROM claviger_auth_requests WHERE email = ? AND kind = ? AND state = 'open' AND expires > ?",
        );
        let of_all = self.words(
            "SELECT count(*) FROM claviger_auth_requests WHERE state = 'open' AND expires > ?",
        );
        let insert = self.words(
            "INSERT INTO claviger_auth_requests (id, user_id, email, kind, algorithm, public_key, code_hash, fingerprint, wrong, created, expires, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, 'open')",
        );
        let user = new.user.map(|user| user.to_string());
        on!(self, pool => {
            let open = sqlx::query(of_one).bind(&new.email).bind(new.kind.name());
            let of_one: i64 = open.bind(new.created).fetch_one(pool).await?.try_get(0)?;
            let open = sqlx::query(of_all).bind(new.created).fetch_one(pool);
            let of_all: i64 = open.await?.try_get(0)?;
            if of_one >= MOST_OF_ONE || of_all >= MOST_OPEN {
                return Ok(Added::TooMany);
            }
            let insert = sqlx::query(insert)
                .bind(&new.id)
                .bind(&user)
                .bind(&new.email)
                .bind(new.kind.name())
                .bind(new.algorithm)
                .bind(&new.public_key)
                .bind(&new.code_hash)
                .bind(&new.fingerprint)
                .bind(new.created)
                .bind(new.expires);
            insert.execute(pool).await?;
        });
        Ok(Added::Yes)
    }

    /// A request that has not expired at `now`.
    pub async fn request(&self, id: &str, now: i64) -> Result<Option<Request>, StoreError> {
        let statement = self.words(select!("WHERE id = ? AND expires > ?"));
        Ok(on!(self, pool => {
            match sqlx::query(statement).bind(id).bind(now).fetch_optional(pool).await? {
                None => None,
                Some(row) => Some(request!(row)),
            }
        }))
    }

    /// Open requests of enrolled users, newest first: all of one user, or those for approvers.
    pub async fn open_requests(
        &self,
        of: Option<UserId>,
        now: i64,
    ) -> Result<Vec<Request>, StoreError> {
        let statement = self.words(match of {
            Some(_) => select!(
                "WHERE state = 'open' AND expires > ? AND user_id = ? ORDER BY created DESC, id LIMIT 200"
            ),
            None => select!(
                "WHERE state = 'open' AND expires > ? AND kind = 'admin' AND user_id IS NOT NULL ORDER BY created DESC, id LIMIT 200"
            ),
        });
        let of = of.map(|user| user.to_string());
        Ok(on!(self, pool => {
            let mut query = sqlx::query(statement).bind(now);
            if let Some(user) = &of {
                query = query.bind(user);
            }
            let rows = query.fetch_all(pool).await?;
            rows.iter().map(|row| Ok(request!(row))).collect::<sqlx::Result<_>>()?
        }))
    }

    /// What was decided, newest first.
    pub async fn decided_requests(&self) -> Result<Vec<Request>, StoreError> {
        let statement = self.words(select!(
            "WHERE kind = 'admin' AND decided_by IS NOT NULL ORDER BY decided DESC, id LIMIT 200"
        ));
        Ok(on!(self, pool => {
            let rows = sqlx::query(statement).fetch_all(pool).await?;
            rows.iter().map(|row| Ok(request!(row))).collect::<sqlx::Result<_>>()?
        }))
    }

    /// Approves with the value for the device, or denies without one; false where it is no longer open.
    pub async fn decide(
        &self,
        id: &str,
        value: Option<&str>,
        by: &str,
        now: i64,
    ) -> Result<bool, StoreError> {
        let statement = self.words(
            "UPDATE claviger_auth_requests SET state = ?, value = ?, decided = ?, decided_by = ? WHERE id = ? AND state = 'open' AND expires > ?",
        );
        let state = if value.is_some() { "approved" } else { "denied" };
        Ok(on!(self, pool => {
            let decide = sqlx::query(statement).bind(state).bind(value).bind(now).bind(by);
            decide.bind(id).bind(now).execute(pool).await?.rows_affected() == 1
        }))
    }

    /// Takes an approved value away, so that it is given once; false where another was quicker.
    pub async fn take(&self, id: &str) -> Result<bool, StoreError> {
        let statement = self.words(
            "UPDATE claviger_auth_requests SET state = 'fetched', value = NULL, public_key = '', code_hash = '' WHERE id = ? AND state = 'approved'",
        );
        Ok(on!(self, pool => {
            sqlx::query(statement).bind(id).execute(pool).await?.rows_affected() == 1
        }))
    }

    /// Counts a wrong access code; a request that had `most` ends.
    pub async fn wrong_code(&self, id: &str, most: i64) -> Result<(), StoreError> {
        let count = self.words("UPDATE claviger_auth_requests SET wrong = wrong + 1 WHERE id = ?");
        let end = self.words(
            "UPDATE claviger_auth_requests SET state = 'expired', value = NULL, public_key = '', code_hash = '' WHERE id = ? AND wrong >= ? AND state IN ('open', 'approved')",
        );
        on!(self, pool => {
            sqlx::query(count).bind(id).execute(pool).await?;
            sqlx::query(end).bind(id).bind(most).execute(pool).await?;
        });
        Ok(())
    }

    /// Erases what has expired: where no one decided, all of it; else, after 90 days, who did.
    pub async fn clean_requests(&self, now: i64) -> Result<(), StoreError> {
        let forget = self.words(
            "DELETE FROM claviger_auth_requests WHERE expires <= ? AND (decided_by IS NULL OR expires <= ?)",
        );
        let erase = self.words(
            "UPDATE claviger_auth_requests SET state = 'expired', value = NULL, public_key = '', code_hash = '' WHERE expires <= ? AND state = 'approved'",
        );
        let erase_denied = self.words(
            "UPDATE claviger_auth_requests SET public_key = '', code_hash = '' WHERE expires <= ? AND state = 'denied' AND public_key <> ''",
        );
        on!(self, pool => {
            sqlx::query(forget).bind(now).bind(now - HISTORY).execute(pool).await?;
            sqlx::query(erase).bind(now).execute(pool).await?;
            sqlx::query(erase_denied).bind(now).execute(pool).await?;
        });
        Ok(())
    }
}

impl Kind {
    /// As it is written: `device` or `admin`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Device, Self::Admin].into_iter().find(|kind| kind.name() == text)
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Admin => "admin",
        }
    }
}

impl State {
    fn parse(text: &str) -> Self {
        let all = [Self::Open, Self::Approved, Self::Denied, Self::Fetched];
        all.into_iter().find(|state| state.name() == text).unwrap_or(Self::Expired)
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Fetched => "fetched",
            Self::Expired => "expired",
        }
    }
}
