-- Health of modeldeployments, tenants and quotapolicies (strata.dev) for Argo CD, which gives a kind
-- without a script no health at all. The same judgement as kstatus, so that Argo CD, Flux and
-- `helm --wait` agree.
local function condition(kind)
  local conditions = obj.status and obj.status.conditions or {}
  for _, c in ipairs(conditions) do
    if c.type == kind then
      return c
    end
  end
end

local function health(status, c, otherwise)
  local message = otherwise
  if c ~= nil then
    message = c.message or ""
    if c.reason ~= nil and c.reason ~= "" then
      message = c.reason .. ": " .. message
    end
  end
  return { status = status, message = message }
end

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", nil, "is being deleted")
end
if obj.status == nil or obj.status.observedGeneration == nil then
  return health("Progressing", nil, "waiting for the operator")
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", nil, "waiting for the operator to see generation " .. tostring(obj.metadata.generation))
end
local reconciling = condition("Reconciling")
if reconciling ~= nil and reconciling.status == "True" then
  return health("Progressing", reconciling)
end
local stalled = condition("Stalled")
if stalled ~= nil and stalled.status == "True" then
  return health("Degraded", stalled)
end
-- A policy says Enforced, the others Ready. ScaledToZero is Ready.
local main = condition("Ready") or condition("Enforced")
if main ~= nil and main.status == "True" then
  return health("Healthy", main)
end
return health("Progressing", main, "no condition yet")
