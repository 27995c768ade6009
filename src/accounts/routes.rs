//! Routes for registration, login, logout, the current user and the change of a password.
use axum::{
    Extension, Json as JsonBody,
    extract::{FromRequestParts, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use platform::{
    http::{
        client_address::ClientAddress,
        extract::Json,
        problem::{BAD_CREDENTIALS, FieldError, Problem, ProblemBody, TOO_MANY_REQUESTS, UNAUTHENTICATED},
    },
    identity::Caller,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Accounts,
    errors::AccountError,
    model::{Credentials, Email, NewSession, NewUser, PasswordChange, User},
    sessions,
};

/// Returns the routes of accounts.
pub fn routes() -> OpenApiRouter<Accounts> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(log_in))
        .routes(routes!(log_out))
        .routes(routes!(show_me))
        .routes(routes!(change_password))
}

/// Register as a customer
#[utoipa::path(
    post, path = "/v1/users", tag = "accounts", request_body = NewUser,
    responses(
        (
            status = 201, description = "The registered user", body = User,
            headers(("location" = String, description = "Path of the user, which can be read after a login")),
            links(("log_in" = (
                operation_id = "log_in",
                request_body = json!({ "email": "{$request.body#/email}", "password": "{$request.body#/password}" }),
                description = "The credentials are those of the registration."
            )))
        ),
        (status = 409, description = "The e-mail address belongs to another user", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Invalid request, or the password is a common one", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn register(
    State(accounts): State<Accounts>,
    _limit: LimitedClient,
    Json(new): Json<NewUser>,
) -> Result<Response, Problem> {
    let email = Email::parse(&new.email).ok_or_else(|| Problem::malformed("Invalid e-mail address."))?;
    let user = accounts.register(&email, &new).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, HeaderValue::from_static("/v1/me"))], JsonBody(user))
        .into_response())
}

/// Log in
/// A wrong password, an unknown address and a locked account get the same response after the same time.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "accounts", request_body = Credentials,
    responses(
        (status = 201, description = "The new session", body = NewSession),
        (status = 401, description = "Invalid credentials", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn log_in(
    State(accounts): State<Accounts>,
    LimitedClient(client): LimitedClient,
    Json(credentials): Json<Credentials>,
) -> Result<Response, Problem> {
    let session = accounts.log_in(&credentials, client).await?;
    Ok((StatusCode::CREATED, JsonBody(session)).into_response())
}

/// Log out
#[utoipa::path(
    delete, path = "/v1/sessions/current", tag = "accounts", security(("session" = [])),
    responses((status = 204, description = "The session has ended"))
)]
async fn log_out(State(accounts): State<Accounts>, caller: Caller) -> Result<StatusCode, Problem> {
    sessions::end(&accounts.database, &caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Show the current user
#[utoipa::path(
    get, path = "/v1/me", tag = "accounts", security(("session" = [])),
    responses((status = 200, description = "The current user", body = User))
)]
async fn show_me(State(accounts): State<Accounts>, caller: Caller) -> Result<JsonBody<User>, Problem> {
    Ok(JsonBody(accounts.current_user(&caller).await?))
}

/// Change the password
/// Ends every session of the user, including the current one.
#[utoipa::path(
    put, path = "/v1/me/password", tag = "accounts", request_body = PasswordChange, security(("session" = [])),
    responses(
        (status = 204, description = "The password was changed, and all sessions have ended"),
        (status = 422, description = "Invalid request, or the new password is a common one", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
async fn change_password(
    State(accounts): State<Accounts>,
    caller: Caller,
    LimitedClient(client): LimitedClient,
    Json(change): Json<PasswordChange>,
) -> Result<StatusCode, Problem> {
    accounts.change_password(&caller, change, client).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A client that has not exceeded the rate limit of logins, registrations and password changes. These requests are
/// limited because each of them hashes a password, which is expensive. This type is an extractor, so that a request
/// over the limit is rejected before its body is read.
struct LimitedClient(ClientAddress);

impl FromRequestParts<Accounts> for LimitedClient {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, accounts: &Accounts) -> Result<Self, Problem> {
        let client = Extension::<ClientAddress>::from_request_parts(parts, accounts).await;
        let Extension(client) = client.map_err(|error| Problem::internal(&error))?;
        let limit = accounts.by_address.check(&client.network());
        limit.map_err(|seconds| Problem::new(TOO_MANY_REQUESTS).retry_after(seconds))?;
        Ok(Self(client))
    }
}

impl From<AccountError> for Problem {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::EmailTaken => Self::conflict("The e-mail address belongs to another user."),
            AccountError::BadCredentials => Self::new(BAD_CREDENTIALS),
            AccountError::WeakPassword(rule) => Self::invalid(vec![FieldError::new("/new_password", rule)]),
            AccountError::UserNotFound => Self::new(UNAUTHENTICATED),
            AccountError::HashReplaced => Self::unavailable(1),
            AccountError::Password(error) => Self::internal(&error),
            AccountError::Random(error) => Self::internal(&error),
            AccountError::Database(error) => error.into(),
        }
    }
}
