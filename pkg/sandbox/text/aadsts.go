package text

// AADSTS is one of Entra's errors. Its text is followed by trace, correlation id and time; %[1]s is the app, %[2]s the
// tenant, %[3]s the offending value.
type AADSTS struct {
	Number, Status int // the AADSTS number, and the HTTP status
	Code, Text     string
	Suberror       string // what Entra adds for its own clients
}

// Refusals lists the AADSTS errors the sandbox knows.
func Refusals() []AADSTS {
	return append(append(append(applicationRefusals(), requestRefusals()...), userRefusals()...), grantRefusals()...)
}

// applicationRefusals are about the client and what it proves itself with.
func applicationRefusals() []AADSTS {
	const badAssertion = "Client assertion contains an invalid signature. [Reason - %[3]s] Review the documentation at https://docs.microsoft.com/en-us/graph/deployments and https://learn.microsoft.com/entra/identity-platform/certificate-credentials."
	const noRecord = "Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
	return []AADSTS{
		{Number: 7000215, Status: 401, Code: "invalid_client", Text: "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%[1]s'."},
		{Number: 7000222, Status: 401, Code: "invalid_client", Text: "The provided client secret keys for app '%[1]s' are expired. Visit the Azure portal to create new keys for your app: https://aka.ms/NewClientSecret, or consider using certificate credentials for added security: https://aka.ms/certCreds."},
		{Number: 7000218, Status: 401, Code: "invalid_client", Text: "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
		{Number: 700025, Status: 401, Code: "invalid_client", Text: "Client is public so neither 'client_assertion' nor 'client_secret' should be presented."},
		{Number: 700021, Status: 401, Code: "invalid_client", Text: "Client assertion application identifier doesn't match 'client_id' parameter. Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials."},
		{Number: 700023, Status: 401, Code: "invalid_client", Text: "Client assertion audience claim does not match Realm issuer. Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials."},
		{Number: 700024, Status: 401, Code: "invalid_client", Text: "Client assertion is not within its valid time range. %[3]s Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials."},
		{Number: 700027, Status: 401, Code: "invalid_client", Text: badAssertion},
		{Number: 50027, Status: 401, Code: "invalid_client", Text: "JWT token is invalid or malformed. %[3]s"},
		{Number: 700211, Status: 401, Code: "invalid_client", Text: "No matching federated identity record found for presented assertion issuer '%[3]s'. " + noRecord},
		{Number: 700212, Status: 401, Code: "invalid_client", Text: "No matching federated identity record found for presented assertion audience '%[3]s'. " + noRecord},
		{Number: 700213, Status: 401, Code: "invalid_client", Text: "No matching federated identity record found for presented assertion subject '%[3]s'. " + noRecord},
		{Number: 5000811, Status: 401, Code: "invalid_client", Text: "Unable to verify token signature. The signing key identifier '%[3]s' does not match any valid registered keys."},
		{Number: 700016, Status: 400, Code: "unauthorized_client", Text: "Application with identifier '%[1]s' was not found in the directory '%[2]s'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant."},
		{Number: 50011, Status: 400, Code: "invalid_request", Text: "The redirect URI '%[3]s' specified in the request does not match the redirect URIs configured for the application '%[1]s'. Make sure the redirect URI sent in the request matches one added to your application in the Azure portal. Navigate to https://aka.ms/redirectUriMismatchError to learn more about how to troubleshoot this error."},
		{Number: 500113, Status: 400, Code: "invalid_request", Text: "No reply address is registered for the application."},
		{Number: 500112, Status: 400, Code: "invalid_client", Text: "The reply address '%[3]s' does not match the reply address provided when requesting Authorization code."},
	}
}

// requestRefusals are about what was asked for.
func requestRefusals() []AADSTS {
	return []AADSTS{
		{Number: 90002, Status: 400, Code: "invalid_request", Text: "Tenant '%[2]s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant."},
		{Number: 9001023, Status: 400, Code: "invalid_request", Text: "The grant type is not supported over the /common or /consumers endpoints. Please use the /organizations or tenant-specific endpoint."},
		{Number: 50194, Status: 400, Code: "invalid_request", Text: "Application '%[1]s' is not configured as a multi-tenant application. Usage of the /common endpoint is not supported for such apps created after '10/15/2018'. Use a tenant-specific endpoint or configure the application to be multi-tenant."},
		{Number: 70011, Status: 400, Code: "invalid_scope", Text: "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope %[3]s is not valid."},
		{Number: 28000, Status: 400, Code: "invalid_scope", Text: "Provided value for the input parameter scope is not valid because it contains more than one resource. Scope %[3]s is not valid."},
		{Number: 650053, Status: 400, Code: "invalid_client", Text: "The application '%[1]s' asked for scope '%[3]s' that doesn't exist on the resource. Contact the app vendor."},
		{Number: 500011, Status: 400, Code: "invalid_resource", Text: "The resource principal named %[3]s was not found in the tenant named %[2]s. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant."},
		{Number: 70003, Status: 400, Code: "unsupported_grant_type", Text: "The app requested an unsupported grant type '%[3]s'."},
		{Number: 700054, Status: 400, Code: "unsupported_response_type", Text: "response_type '%[3]s' is not enabled for the application."},
		{Number: 9002325, Status: 400, Code: "invalid_request", Text: "Proof Key for Code Exchange is required for cross-origin authorization code redemption."},
		{Number: 50147, Status: 400, Code: "invalid_request", Text: "MissingCodeChallenge: The size of the code challenge parameter isn't valid."},
		{Number: 9002313, Status: 400, Code: "invalid_grant", Text: "Invalid request. Request is malformed or invalid."},
		{Number: 900144, Status: 400, Code: "invalid_request", Text: "The request body must contain the following parameter: '%[3]s'."},
		{Number: 90014, Status: 400, Code: "invalid_request", Text: "The required field '%[3]s' is missing from the credential. Ensure that you have all the necessary parameters for the login request."},
		{Number: 90033, Status: 503, Code: "temporarily_unavailable", Text: "A transient error has occurred. Please try again."},
		{Number: 90055, Status: 429, Code: "temporarily_unavailable", Text: "Tenant '%[2]s' request is throttled due to excessive request rate."},
		{Number: 50196, Status: 400, Code: "invalid_grant", Text: "The server terminated an operation because it encountered a client request loop. Please contact your app vendor."},
	}
}

// userRefusals are about the person who signs in, and what that person may allow.
func userRefusals() []AADSTS {
	return []AADSTS{
		{Number: 50034, Status: 400, Code: "invalid_grant", Text: "The user account %[3]s does not exist in the %[2]s directory. To sign into this application, the account must be added to the directory."},
		{Number: 50020, Status: 400, Code: "invalid_grant", Text: "User account '%[3]s' from identity provider 'live.com' does not exist in tenant '%[2]s' and cannot access the application '%[1]s' in that tenant. The account needs to be added as an external user in the tenant first. Sign out and sign in again with a different Azure Active Directory user account."},
		{Number: 50053, Status: 400, Code: "invalid_grant", Text: "The account is locked, you've tried to sign in too many times with an incorrect user ID or password."},
		{Number: 50055, Status: 400, Code: "invalid_grant", Text: "The password is expired."},
		{Number: 50057, Status: 400, Code: "invalid_grant", Text: "The user account is disabled."},
		{Number: 50058, Status: 400, Code: "login_required", Text: "A silent sign-in request was sent but no user is signed in."},
		{Number: 50076, Status: 400, Code: "invalid_grant", Suberror: "basic_action", Text: "Due to a configuration change made by your administrator, or because you moved to a new location, you must use multi-factor authentication to access '%[3]s'."},
		{Number: 50079, Status: 400, Code: "invalid_grant", Suberror: "basic_action", Text: "Due to a configuration change made by your administrator, or because you moved to a new location, you must enroll in multi-factor authentication to access '%[3]s'."},
		{Number: 50105, Status: 400, Code: "invalid_grant", Text: "Your administrator has configured the application ('%[1]s') to block users unless they are specifically granted ('assigned') access to the application. The signed in user '%[3]s' is blocked because they are not a direct member of a group with access, nor had access directly assigned by an administrator. Please contact your administrator to assign access to this application."},
		{Number: 50126, Status: 400, Code: "invalid_grant", Text: "Error validating credentials due to invalid username or password."},
		{Number: 53003, Status: 400, Code: "invalid_grant", Suberror: "message_only", Text: "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance."},
		{Number: 530035, Status: 400, Code: "invalid_grant", Text: "Access has been blocked by security defaults. This might be due to the request being deemed unsafe by the security defaults policies."},
		{Number: 65001, Status: 400, Code: "invalid_grant", Suberror: "consent_required", Text: "The user or administrator has not consented to use the application with ID '%[1]s'. Send an interactive authorization request for this user and resource."},
		{Number: 65004, Status: 400, Code: "access_denied", Text: "User declined to consent to access the app."},
		{Number: 90094, Status: 400, Code: "access_denied", Text: "An administrator of %[2]s has set a policy that prevents you from granting %[1]s the permissions it is requesting. Contact an administrator of %[2]s, who can grant permissions to this app on your behalf."},
	}
}

// grantRefusals are about codes and tokens that are presented.
func grantRefusals() []AADSTS {
	return []AADSTS{
		{Number: 54005, Status: 400, Code: "invalid_grant", Text: "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an existing refresh token."},
		{Number: 501481, Status: 400, Code: "invalid_grant", Text: "The Code_Verifier does not match the code_challenge supplied in the authorization request."},
		{Number: 50148, Status: 400, Code: "invalid_grant", Text: "The code_verifier does not match the code_challenge supplied in the authorization request for PKCE."},
		{Number: 70008, Status: 400, Code: "invalid_grant", Text: "The provided authorization code or refresh token has expired due to inactivity. Send a new interactive authorization request for this user and resource."},
		{Number: 700005, Status: 400, Code: "invalid_grant", Text: "The provided value for the 'code' parameter is not valid: the Authorization Code is intended to use against other tenant, thus rejected."},
		{Number: 700009, Status: 400, Code: "invalid_request", Text: "Reply address must be provided when requesting Authorization code."},
		{Number: 700082, Status: 400, Code: "invalid_grant", Text: "The refresh token has expired due to inactivity. %[3]s"},
		{Number: 70000, Status: 400, Code: "invalid_grant", Text: "The provided value for the input parameter is not valid: %[3]s"},
		{Number: 50173, Status: 400, Code: "invalid_grant", Suberror: "bad_token", Text: "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user might have changed or reset their password. %[3]s"},
		{Number: 70016, Status: 400, Code: "authorization_pending", Text: "OAuth 2.0 device flow error. Authorization is pending. Continue polling."},
		{Number: 700160, Status: 400, Code: "slow_down", Text: "OAuth 2.0 device flow error. The client polls more often than its interval allows."}, // the number is ours: none is published
		{Number: 70018, Status: 400, Code: "bad_verification_code", Text: "Bad verification code. User typed in the wrong user code for device code flow, or the device code is not known."},
		{Number: 70019, Status: 400, Code: "expired_token", Text: "Verification code expired. The user hasn't signed in before the device code expired."},
		{Number: 700170, Status: 400, Code: "authorization_declined", Text: "OAuth 2.0 device flow error. The end user denied the authorization request."}, // likewise
	}
}
